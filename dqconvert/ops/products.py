"""Products with a weight or of two values, reductions, norms, and whatever else adds up several entries."""

from __future__ import annotations

from typing import Any

from dqconvert.ops.record import Op, Sign, Storage

_WHOLE = ("input", "dim", "keepdim", "dtype")


def _product(name: str, weighted: tuple[int, ...] = (), **facts: Any) -> Op:
    """A product of matrices or vectors; `weighted` are the positions of its factors."""
    return Op(name, product=True, weighted=weighted, **facts)


def _reduction(name: str, **facts: Any) -> Op:
    return Op(name, parameters=_WHOLE, **facts)


def _entries_of_source(x: Any, dim: int, index: Any, source: Any, *_: Any, **__: Any) -> int:
    return int(source.numel())


def _recurrent(x: Any, input_weights: Any, hidden_weights: Any, *_: Any) -> int:
    return int(x.size(0)) * int(x.size(1)) * int(input_weights.numel() + hidden_weights.numel())


PRODUCTS = (
    _product(
        "linear",
        (0, 1),
        variants=("mkldnn_linear", "linear_pointwise"),
        modules=("torch.nn.Linear", "torch_geometric.nn.Linear"),
        parameters=("input", "weight", "bias"),
        by_position=("bias",),
        storage=Storage.OWN,
    ),
    _product(
        "matmul",
        (0, 1),
        aliases=("linalg_matmul",),
        variants=("mv", "mm", "bmm"),
        operator="matmul",
        methods=("matmul",),
        swapped=("__rmatmul__",),
        columns_last=True,
        storage=Storage.OWN,
    ),
    _product("addmm", (1, 2), storage=Storage.OWN),
    _product("baddbmm", (1, 2)),
    _product("bilinear", (0, 1, 2), modules=("torch.nn.Bilinear",)),
    _product("conv1d", (0, 1)),
    _product("conv2d", (0, 1)),
    _product("conv3d", (0, 1)),
    _product(
        "embedding",
        (0, 1),
        modules=("torch.nn.Embedding",),
        parameters=("input", "weight", "padding_idx", "max_norm"),
        row_by_row=1,
    ),
    _product("embedding_bag", modules=("torch.nn.EmbeddingBag",)),
    _product(
        "einsum", storage=Storage.SHARED
    ),  # its factors are all of its tensors; without a sum it may return a view
    _product("spmm", columns_last=True),
    *map(_product, ("addmv", "addbmm", "tensordot", "inner", "segment_matmul", "grouped_matmul")),
    *map(_product, ("chain_matmul", "multi_dot", "kron", "hspmm", "sspaddmm")),
)

# Layers that are no one function: their weights are seen, and nothing else inside.
WEIGHTED_LAYERS = (
    _product("convolution", modules=("torch.nn.modules.conv._ConvNd",)),
    _product("recurrent", modules=("torch.nn.RNNBase", "torch.nn.RNNCellBase")),
    _product("multi_head_attention", modules=("torch.nn.MultiheadAttention",)),
    _product("hetero_linear", modules=("torch_geometric.nn.HeteroLinear", "torch_geometric.nn.HeteroDictLinear")),
)

REDUCTIONS = (
    _reduction("sum", sign=Sign.KEEPS),
    _reduction("mean", sign=Sign.KEEPS),
    _reduction("amax", sign=Sign.KEEPS, lets_relu_pass=True),
    _reduction("amin", sign=Sign.KEEPS, lets_relu_pass=True),
    _reduction("prod"),
    _reduction("std"),
    _reduction("var"),
    Op("max", sign=Sign.KEEPS, bookkeeping=True, scalar=True),
    Op("min", sign=Sign.KEEPS, bookkeeping=True, scalar=True),
    Op("norm", sign=Sign.NONNEGATIVE),
    Op("logsumexp", aliases=("special_logsumexp",)),
    Op(
        "softmax",
        modules=("torch.nn.Softmax",),
        aliases=("special_softmax",),
        parameters=("input", "dim"),
        sign=Sign.NONNEGATIVE,
        squashes=True,
        storage=Storage.OWN,
    ),
    Op("log_softmax", aliases=("special_log_softmax",)),
)

SCATTERS = (
    Op("scatter", scatters=True, storage=Storage.OWN, remembered=True),
    *(
        Op(name, scatters=True, multiply_adds=_entries_of_source)
        for name in ("scatter_add", "index_add", "scatter_reduce", "index_reduce")
    ),
    Op("segment_reduce", scatters=True, multiply_adds=lambda data, *_, **__: data.numel()),
    Op("mkldnn_rnn_layer", multiply_adds=_recurrent),
)

NORMS = (Op("batch_norm", modules=("torch.nn.BatchNorm1d", "torch_geometric.nn.BatchNorm")),)

SUMS = PRODUCTS + WEIGHTED_LAYERS + REDUCTIONS + SCATTERS + NORMS
