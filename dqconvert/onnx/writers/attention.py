"""torch's multi-head attention, whose weights a prepared graph hands over rounded."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dqconvert.onnx.stored import Grid, Stored
from dqconvert.onnx.values import Wire
from dqconvert.onnx.writers.products import linear, reduced_over
from dqconvert.onnx.writing import Writing


def multi_head_attention(
    w: Writing,
    module: Any,
    weights: Any,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Wire, Wire | None]:
    """Writes a call of :class:`torch.nn.MultiheadAttention` in evaluation, on a batch of sequences.

    Returns:
        ``[batch, targets, width]``, or as ``batch_first`` has it, and the attention: ``None`` unless asked for.
    """
    if module.bias_k is not None or module.add_zero_attn:
        raise w.refusal("it adds keys of its own (add_bias_kv, add_zero_attn)")
    given = [w.wire(one) for one in (query, key, value)]
    if given[0].ndim != 3:
        raise w.refusal("its input is a single sequence: pass a batch of one")
    rows = [one if module.batch_first else w.op("Transpose", one, perm=[1, 0, 2]) for one in given]
    batch, targets, sources = w.file.size(rows[0], 0), w.file.size(rows[0], 1), w.file.size(rows[1], 1)
    heads, width = module.num_heads, module.head_dim

    def projected(place: int, perm: list[int]) -> Wire:
        weight, bias = _projection(w, module, weights, place)
        split = [batch, w.file.size(rows[place], 1), heads, width]
        return w.op("Transpose", w.file.reshape(linear(w, rows[place], weight, bias), split), perm=perm)

    scaled = w.math("Mul", projected(0, [0, 2, 1, 3]), math.sqrt(1 / width))
    scores = w.op("MatMul", scaled, projected(1, [0, 2, 3, 1]))  # [batch, heads, targets, sources]
    for mask, dims in ((attn_mask, (-1, -2)), (key_padding_mask, (1, 2))):
        if mask is None:
            continue
        apart = w.wire(mask)
        if apart.ndim == 3:  # one for each head of each sequence
            apart = w.file.reshape(apart, [batch, heads, targets, sources])
        elif dims[0] > 0:  # of the sources of each sequence
            apart = w.file.unsqueeze(apart, *dims)
        if apart.dtype is torch.bool:
            apart = w.op("Where", apart, -math.inf, 0.0, dtype=torch.float32, ndim=apart.ndim)
        scores = w.math("Add", scores, apart)
    shares = w.op("Softmax", scores, axis=3)
    mixed = w.op("Transpose", w.op("MatMul", shares, projected(2, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    joined = w.file.reshape(mixed, [batch, targets, heads * width])
    out = linear(w, joined, weights["out_proj.weight"], module.out_proj.bias)
    out = out if module.batch_first else w.op("Transpose", out, perm=[1, 0, 2])
    if not need_weights:
        return out, None
    return out, reduced_over(w, "ReduceMean", shares, 1, False) if average_attn_weights else shares


def _projection(w: Writing, module: Any, weights: Any, place: int) -> tuple[Any, Tensor | None]:
    """Returns the weight and the bias of the queries', keys' or values' projection."""
    own = slice(place * module.embed_dim, (place + 1) * module.embed_dim)
    bias = None if module.in_proj_bias is None else module.in_proj_bias.detach()[own]
    name = "qkv"[place]
    if not module._qkv_same_embed_dim:
        return weights[f"{name}_proj_weight"], bias
    packed = weights["in_proj_weight"]
    if isinstance(packed, Wire):
        return w.file.gather(packed, torch.arange(own.start, own.stop)), bias
    return _rows(packed, own, name) if isinstance(packed, Stored) else packed[own], bias


def _rows(packed: Stored, own: slice, name: str) -> Stored:
    grid: Grid = packed.grid
    if grid.axis is not None:
        grid = replace(grid, scale=grid.scale[own], zero=grid.zero[own])
    return Stored(packed.codes[own].contiguous(), grid, f"{packed.path}.{name}")
