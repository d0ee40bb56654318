"""Layers that stay whole in graphs: aggregations and norms, as PyG's own code computes them in evaluation."""

from __future__ import annotations

import math
from typing import Any

import torch

from dqconvert.onnx.segments import count_rows, softmax_rows
from dqconvert.onnx.values import Wire
from dqconvert.onnx.writers.graphs import number_of_nodes, reduced
from dqconvert.onnx.writing import Writing, writes, writes_layer
from dqconvert.ops import PYG

_AGGR, _NORM = "torch_geometric.nn.aggr", "torch_geometric.nn.norm"

# -- aggregations ----------------------------------------------------------------------------------------------------


def _aggregation(name: str, how: str) -> None:
    @writes(f"{name}Aggregation", package=PYG)
    def write(w: Writing, x: Any, index: Any = None, ptr: Any = None, dim_size: Any = None, dim: int = -2) -> Wire:
        return _reduced(w, x, index, ptr, dim_size, dim, how)


for _how in ("sum", "mean", "max", "min"):
    _aggregation(_how.capitalize(), _how)


def _reduced(w: Writing, x: Any, index: Any, ptr: Any, dim_size: Any, dim: int, how: str) -> Wire:
    if index is None:
        raise w.refusal("an aggregation without index")
    return reduced(w, x, index, dim, dim_size, how)


@writes_layer(f"{_AGGR}.basic.VarAggregation")
def _var(
    w: Writing, layer: Any, x: Any, index: Any = None, ptr: Any = None, dim_size: Any = None, dim: int = -2
) -> Wire:
    mean = _reduced(w, x, index, ptr, dim_size, dim, "mean")
    squares = _reduced(w, w.math("Mul", x, x), index, ptr, dim_size, dim, "mean")
    return w.math("Sub", squares, w.math("Mul", mean, mean))


@writes_layer(f"{_AGGR}.basic.StdAggregation")
def _std(
    w: Writing, layer: Any, x: Any, index: Any = None, ptr: Any = None, dim_size: Any = None, dim: int = -2
) -> Wire:
    variance = w.layer(layer.var_aggr, (x, index, ptr, dim_size, dim), {})
    root = w.op("Sqrt", w.op("Clip", variance, 1e-5))
    small = w.math("LessOrEqual", root, math.sqrt(1e-5), dtype=torch.bool)
    return w.op("Where", small, 0.0, root, dtype=root.dtype, ndim=root.ndim)


@writes_layer(f"{_AGGR}.basic.SoftmaxAggregation")
def _softmax(
    w: Writing, layer: Any, x: Any, index: Any = None, ptr: Any = None, dim_size: Any = None, dim: int = -2
) -> Wire:
    value = w.wire(x)
    if dim % value.ndim != 0 or index is None:
        raise w.refusal("a softmax that is not over the first dimension")
    steep = value if isinstance(layer.t, int | float) and layer.t == 1 else w.math("Mul", value, layer.t)
    groups = w.wire(index)
    number = number_of_nodes(w, groups, dim_size)
    return reduced(w, w.math("Mul", value, softmax_rows(w, steep, groups, number)), groups, dim, number, "sum")


@writes_layer(f"{_AGGR}.multi.MultiAggregation")
def _multi(
    w: Writing, layer: Any, x: Any, index: Any = None, ptr: Any = None, dim_size: Any = None, dim: int = -2
) -> Wire:
    parts = [w.layer(one, (x, index, ptr, dim_size, dim), {}) for one in layer.aggrs]
    kinds = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin"}
    if layer.mode == "cat" or len(parts) == 1:
        return parts[0] if len(parts) == 1 else w.op("Concat", *parts, axis=parts[0].ndim - 1)
    if layer.mode not in kinds:
        raise w.refusal(f"several aggregations are combined by {layer.mode!r}")
    stacked = w.op("Concat", *(w.file.unsqueeze(part, 0) for part in parts), axis=0)
    return w.op(kinds[layer.mode], stacked, torch.tensor([0]), ndim=parts[0].ndim, keepdims=0)


@writes_layer(f"{_AGGR}.scaler.DegreeScalerAggregation")
def _scaler(
    w: Writing, layer: Any, x: Any, index: Any = None, ptr: Any = None, dim_size: Any = None, dim: int = -2
) -> Wire:
    out = w.layer(layer.aggr, (x, index, ptr, dim_size, dim), {})
    number = number_of_nodes(w, w.wire(index), dim_size)
    degree = count_rows(w, w.wire(index), number, out.dtype)
    degree = w.file.reshape(degree, [-1 if each == dim % out.ndim else 1 for each in range(out.ndim)])
    least = w.math("Max", degree, 1.0)
    factors = {
        "amplification": lambda: w.math("Div", w.op("Log", w.math("Add", degree, 1.0)), layer.avg_deg_log),
        "attenuation": lambda: w.math("Div", layer.avg_deg_log, w.op("Log", w.math("Add", least, 1.0))),
        "linear": lambda: w.math("Div", degree, layer.avg_deg_lin),
        "inverse_linear": lambda: w.math("Div", layer.avg_deg_lin, least),
    }
    parts = [out if scaler == "identity" else w.math("Mul", out, factors[scaler]()) for scaler in layer.scaler]
    return parts[0] if len(parts) == 1 else w.op("Concat", *parts, axis=out.ndim - 1)


# -- norms -----------------------------------------------------------------------------------------------------------


def _affine(w: Writing, x: Wire, weight: Any, bias: Any) -> Wire:
    scaled = x if weight is None else w.math("Mul", x, weight)
    return scaled if bias is None else w.math("Add", scaled, bias)


def _over_rows(w: Writing, kind: str, x: Wire, dims: list[int], keep: bool = True) -> Wire:
    return w.op(kind, x, torch.tensor(dims), ndim=x.ndim if keep else x.ndim - len(dims), keepdims=int(keep))


@writes_layer("torch.nn.modules.batchnorm.BatchNorm1d")
def _batch_norm(w: Writing, layer: Any, x: Any) -> Wire:
    value = w.wire(x)
    if layer.running_mean is None or layer.running_var is None:
        raise w.refusal("a batch norm without running statistics")
    shape = [1, -1, *[1] * (value.ndim - 2)]
    parts = {"weight": torch.ones_like(layer.running_var), "bias": torch.zeros_like(layer.running_mean)}
    weight, bias = (
        default if getattr(layer, name) is None else getattr(layer, name) for name, default in parts.items()
    )
    factor = (weight / (layer.running_var + layer.eps).sqrt()).detach()
    rest = (bias - layer.running_mean * factor).detach()
    if value.ndim > 2:
        factor, rest = factor.view(shape), rest.view(shape)
    return w.math("Add", w.math("Mul", value, factor), rest)


@writes_layer(f"{_NORM}.batch_norm.BatchNorm")
def _batch_norm_of_rows(w: Writing, layer: Any, x: Any) -> Wire:
    return _batch_norm(w, layer.module, x)


@writes_layer("torch.nn.modules.normalization.LayerNorm")
def _layer_norm(w: Writing, layer: Any, x: Any) -> Wire:
    return _normed_rows(w, x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


@writes("layer_norm")
def _normed_rows(
    w: Writing, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Wire:
    value = w.wire(input)
    scale = torch.ones(tuple(normalized_shape)) if weight is None else weight
    return w.op("LayerNormalization", value, scale, bias, axis=-len(normalized_shape), epsilon=eps)


@writes_layer(f"{_NORM}.layer_norm.LayerNorm")
def _layer_norm_of_graphs(w: Writing, layer: Any, x: Any, batch: Any = None, batch_size: Any = None) -> Wire:
    value = w.wire(x)
    if layer.mode == "node":
        return _normed_rows(w, value, (layer.in_channels,), layer.weight, layer.bias, layer.eps)
    if batch is None:
        dims = list(range(value.ndim))
        apart = w.math("Sub", value, _over_rows(w, "ReduceMean", value, dims))
        spread = w.op("Sqrt", _over_rows(w, "ReduceMean", w.math("Mul", apart, apart), dims))
        return _affine(w, w.math("Div", apart, w.math("Add", spread, float(layer.eps))), layer.weight, layer.bias)
    groups = w.wire(batch)
    size = number_of_nodes(w, groups, batch_size)
    norm = w.math("Max", count_rows(w, groups, size, value.dtype), 1.0)
    norm = w.file.unsqueeze(w.math("Mul", norm, w.file.cast(w.file.size(value, -1), value.dtype)), 1)

    def mean(of: Wire) -> Wire:
        return w.math("Div", _over_rows(w, "ReduceSum", reduced(w, of, groups, 0, size, "sum"), [1]), norm)

    apart = w.math("Sub", value, w.file.gather(mean(value), groups))
    spread = w.op("Sqrt", w.math("Add", mean(w.math("Mul", apart, apart)), float(layer.eps)))
    return _affine(w, w.math("Div", apart, w.file.gather(spread, groups)), layer.weight, layer.bias)


@writes_layer(f"{_NORM}.graph_norm.GraphNorm")
def _graph_norm(w: Writing, layer: Any, x: Any, batch: Any = None, batch_size: Any = None) -> Wire:
    value = w.wire(x)

    def mean(of: Wire) -> Wire:
        if batch is None:
            return _over_rows(w, "ReduceMean", of, [0])
        return w.file.gather(reduced(w, of, batch, 0, batch_size, "mean"), w.wire(batch))

    apart = w.math("Sub", value, w.math("Mul", mean(value), layer.mean_scale))
    spread = w.op("Sqrt", w.math("Add", mean(w.math("Mul", apart, apart)), float(layer.eps)))
    return w.math("Add", w.math("Div", w.math("Mul", layer.weight, apart), spread), layer.bias)


@writes_layer(f"{_NORM}.instance_norm.InstanceNorm")
def _instance_norm(w: Writing, layer: Any, x: Any, batch: Any = None, batch_size: Any = None) -> Wire:
    value = w.wire(x)
    if layer.track_running_stats:
        mean: Any = layer.running_mean
        variance: Any = layer.running_var
        apart = w.math("Sub", value, mean)
    else:

        def average(of: Wire) -> Wire:
            if batch is None:
                return _over_rows(w, "ReduceMean", of, [0])
            return w.file.gather(reduced(w, of, batch, 0, batch_size, "mean"), w.wire(batch))

        apart = w.math("Sub", value, average(value))
        variance = average(w.math("Mul", apart, apart))
    spread = w.op("Sqrt", w.math("Add", variance, float(layer.eps)))
    return _affine(w, w.math("Div", apart, spread), layer.weight, layer.bias)


@writes_layer(f"{_NORM}.mean_subtraction_norm.MeanSubtractionNorm")
def _mean_subtraction(w: Writing, layer: Any, x: Any, batch: Any = None, dim_size: Any = None) -> Wire:
    value = w.wire(x)
    if batch is None:
        return w.math("Sub", value, _over_rows(w, "ReduceMean", value, [0]))
    return w.math("Sub", value, w.file.gather(reduced(w, value, batch, 0, dim_size, "mean"), w.wire(batch)))


@writes_layer(f"{_NORM}.pair_norm.PairNorm")
def _pair_norm(w: Writing, layer: Any, x: Any, batch: Any = None, batch_size: Any = None) -> Wire:
    apart = _mean_subtraction(w, layer, x, batch, batch_size)
    squares = w.math("Mul", apart, apart)
    if layer.scale_individually:
        size = w.math("Add", w.op("Sqrt", _over_rows(w, "ReduceSum", squares, [apart.ndim - 1])), float(layer.eps))
    else:
        sums = _over_rows(w, "ReduceSum", squares, [apart.ndim - 1])
        if batch is None:
            means = _over_rows(w, "ReduceMean", sums, [0])
        else:
            means = w.file.gather(reduced(w, sums, batch, 0, batch_size, "mean"), w.wire(batch))
        size = w.op("Sqrt", w.math("Add", means, float(layer.eps)))
    return w.math("Div", w.math("Mul", apart, float(layer.scale)), size)


@writes_layer(f"{_NORM}.graph_size_norm.GraphSizeNorm")
def _graph_size_norm(w: Writing, layer: Any, x: Any, batch: Any = None, batch_size: Any = None) -> Wire:
    value = w.wire(x)
    if batch is None:
        number = w.file.cast(w.file.size(value, 0), value.dtype)
        return w.math("Mul", value, w.op("Reciprocal", w.op("Sqrt", number)))
    groups = w.wire(batch)
    number = count_rows(w, groups, number_of_nodes(w, groups, batch_size), value.dtype)
    root = w.op("Reciprocal", w.op("Sqrt", number))
    return w.math("Mul", value, w.file.unsqueeze(w.file.gather(root, groups), 1))


@writes_layer(f"{_NORM}.msg_norm.MessageNorm")
def _message_norm(w: Writing, layer: Any, x: Any, msg: Any, p: float = 2.0) -> Wire:
    if p != 2.0:
        raise w.refusal(f"a norm of order {p}")
    value = w.wire(x)
    own = _over_rows(w, "ReduceL2", value, [value.ndim - 1])
    message = w.wire(msg)
    size = w.math("Max", _over_rows(w, "ReduceL2", message, [message.ndim - 1]), 1e-12)
    return w.math("Mul", w.math("Mul", w.math("Div", message, size), own), layer.scale)
