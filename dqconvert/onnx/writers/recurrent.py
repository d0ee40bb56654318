"""Recurrent layers, attention, and linear layers by type, whose weights a prepared graph hands over one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import HeteroDictLinear, HeteroLinear

from dqconvert.onnx.values import Wire
from dqconvert.onnx.writers.attention import multi_head_attention
from dqconvert.onnx.writers.products import linear
from dqconvert.onnx.writing import Writer, Writing, writes
from dqconvert.ops import OURS

_GATES = {nn.LSTM: ("LSTM", (0, 3, 1, 2)), nn.GRU: ("GRU", (1, 0, 2))}
"""By layer: ONNX's operator, and the places of its gates in torch's order."""


@writes("call_with_weights", package=OURS)
def _call_with_weights(w: Writing, module: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
    layer = getattr(module, "_user_class", type(module))
    if layer in _WHOLE:
        return w.bound(_WHOLE[layer], (module, weights, *args), kwargs)
    if layer not in _GATES or module.num_layers != 1 or getattr(module, "proj_size", 0):
        known = ", ".join(one.__name__ for one in _WHOLE)
        raise w.refusal(f"there is no writer of {layer.__name__}, but of LSTM and GRU of one layer, {known}")
    return w.bound(_sequence, (module, weights, *args), kwargs)


def _sequence(w: Writing, module: Any, weights: Any, input: Any, hx: Any = None) -> tuple[Wire, Any]:
    layer = getattr(module, "_user_class", type(module))
    kind, order = _GATES[layer]
    suffixes = ("l0", "l0_reverse")[: 1 + module.bidirectional]
    hidden = module.hidden_size
    rows = torch.cat([torch.arange(hidden) + gate * hidden for gate in order])

    def part(name: str) -> Wire:
        values = [w.wire(weights.get(f"{name}_{suffix}", getattr(module, f"{name}_{suffix}"))) for suffix in suffixes]
        both = [w.file.unsqueeze(w.file.gather(value, rows), 0) for value in values]
        return both[0] if len(both) == 1 else w.op("Concat", *both, axis=0)

    bias = w.op("Concat", part("bias_ih"), part("bias_hh"), axis=1) if module.bias else None
    x = w.wire(input)
    if x.ndim != 3:
        raise w.refusal("its input is a single sequence: pass a batch of one")
    steps = w.op("Transpose", x, perm=[1, 0, 2]) if module.batch_first else x
    states = [hx] if isinstance(hx, Wire | Tensor) else list(hx or ())
    how = {"linear_before_reset": 1} if kind == "GRU" else {}
    direction = "bidirectional" if module.bidirectional else "forward"
    given = [steps, part("weight_ih"), part("weight_hh"), bias, None, *map(w.wire, states)]
    results = [(x.dtype, 4), *[(x.dtype, 3)] * (1 + (kind == "LSTM"))]
    y, *last = w.file.ops(kind, given, results, hidden_size=hidden, direction=direction, **how)
    # [steps, directions, batch, hidden] to [steps, batch, directions * hidden], or batch first
    y = w.op("Transpose", y, perm=[2, 0, 1, 3] if module.batch_first else [0, 2, 1, 3])
    sizes = [w.file.size(x, 0), w.file.size(x, 1), hidden * len(suffixes)]
    return w.file.reshape(y, sizes), last[0] if len(last) == 1 else tuple(last)


# -- cells -----------------------------------------------------------------------------------------------------------


def _gates(w: Writing, module: Any, weights: Any, x: Any, h: Wire, number: int) -> list[list[Wire]]:
    """Returns what the input and the state give to each gate."""
    sizes = torch.full((number,), module.hidden_size)
    found = []
    for value, side in ((x, "ih"), (h, "hh")):
        whole = linear(w, value, weights[f"weight_{side}"], getattr(module, f"bias_{side}"))
        parts = [(whole.dtype, whole.ndim)] * number
        found.append(w.file.ops("Split", [whole, w.wire(sizes)], parts, axis=whole.ndim - 1))
    return found


def _state(w: Writing, module: Any, x: Wire, hx: Any) -> Wire:
    if hx is not None:
        return w.wire(hx)
    return w.file.full([*(w.file.size(x, dim) for dim in range(x.ndim - 1)), module.hidden_size], 0, x.dtype)


def _gru_cell(w: Writing, module: Any, weights: Any, input: Any, hx: Any = None) -> Wire:
    x = w.wire(input)
    h = _state(w, module, x, hx)
    (reset, update, new), (reset_h, update_h, new_h) = _gates(w, module, weights, x, h, 3)
    r, z = (w.op("Sigmoid", w.op("Add", *both)) for both in ((reset, reset_h), (update, update_h)))
    n = w.op("Tanh", w.op("Add", new, w.op("Mul", r, new_h)))
    return w.op("Add", n, w.op("Mul", z, w.op("Sub", h, n)))


def _lstm_cell(w: Writing, module: Any, weights: Any, input: Any, hx: Any = None) -> tuple[Wire, Wire]:
    x = w.wire(input)
    h, c = (_state(w, module, x, one) for one in (hx or (None, None)))
    i, f, g, o = (w.op("Add", *both) for both in zip(*_gates(w, module, weights, x, h, 4), strict=True))
    kept = w.op("Mul", w.op("Sigmoid", f), c)
    cell = w.op("Add", kept, w.op("Mul", w.op("Sigmoid", i), w.op("Tanh", g)))
    return w.op("Mul", w.op("Sigmoid", o), w.op("Tanh", cell)), cell


# -- linear layers by type -------------------------------------------------------------------------------------------


def _hetero_dict_linear(w: Writing, module: Any, weights: Any, x_dict: Any) -> dict[Any, Wire]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        key: linear(w, x_dict[key], weights[names[id(layer.weight)]], layer.bias)
        for key, layer in module.lins.items()
        if key in x_dict
    }


def _hetero_linear(w: Writing, module: Any, weights: Any, x: Any, type_vec: Any) -> Wire:
    """Multiplies all rows by the weights of every type, and takes of each the one that is its own."""
    value, kinds = w.wire(x), w.wire(type_vec)
    every = w.op("MatMul", w.file.unsqueeze(value, 0), weights["weight"], ndim=3)  # [types, rows, columns]
    at = w.op("Concat", *(w.file.unsqueeze(one, 1) for one in (kinds, w.file.arange(w.file.size(value, 0)))), axis=1)
    own = w.op("GatherND", every, at, ndim=2)
    return own if module.bias is None else w.op("Add", own, w.file.gather(w.wire(module.bias), kinds))


_WHOLE: dict[type[nn.Module], Writer] = {
    nn.GRUCell: _gru_cell,
    nn.LSTMCell: _lstm_cell,
    HeteroDictLinear: _hetero_dict_linear,
    HeteroLinear: _hetero_linear,
    nn.MultiheadAttention: multi_head_attention,
}
"""By layer: what writes it, given its rounded weights."""
