"""The runtimes that files are for: what each wants of the roundings in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnx import TensorProto, helper
from torch import nn
from torch.fx import Graph

from dqconvert.errors import ExportError
from dqconvert.onnx.builder import Builder
from dqconvert.quant import FakeQuantize
from dqconvert.words import did_you_mean, listed


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of a file for a runtime.

    Attributes:
        plain: Whether roundings are pairs of QuantizeLinear and DequantizeLinear and nothing else: what the runtime
            looks for. Otherwise halves fall as in training.
        scatters: Whether rows are added up by ScatterElements: the runtime neither sorts, compresses, nor computes in
            double precision.
        symmetric: Whether zero points must be 0, and codes signed.
        preset: One that gives what it takes.
    """

    plain: bool = True
    scatters: bool = False
    symmetric: bool = False
    preset: str = "int8-dq"


TARGETS: Mapping[str, Form] = MappingProxyType(
    {
        "onnxruntime": Form(),
        "openvino": Form(),
        "tensorrt": Form(scatters=True, symmetric=True, preset="int8-dq-symmetric"),
    }
)
"""By name. What TensorRT takes is what its parser of ONNX says of TensorRT 10 (``docs/operators.md`` of
github.com/onnx/onnx-tensorrt): no file was run there."""


def form_for(target: str | None, exact: bool) -> Form:
    """Returns the form of a file for a target; ``None``: for any runtime, halves as in training.

    Raises:
        ExportError: If there is no such target, or it cannot be had with ``exact``.
    """
    if target is None:
        return Form(plain=False)
    if target not in TARGETS:
        raise ExportError(f"target={target!r}: is unknown{did_you_mean(target, TARGETS)}; there are {listed(TARGETS)}.")
    if exact:
        raise ExportError(
            f"exact=True writes roundings as arithmetic, which {target} computes in float: leave target out, or exact."
        )
    return TARGETS[target]


def check_target(graph: Graph, root: nn.Module, target: str | None) -> None:
    """Raises :class:`ExportError` if a runtime does not take, as integers, what a graph rounds to; it says which."""
    if target is None:
        return
    form, found = TARGETS[target], dict(_odd(graph, root, TARGETS[target]))
    if found:
        shown = listed((f"{path} ({why})" for path, why in found.items()), most=4)
        raise ExportError(
            f"target={target!r} takes roundings to 8 bits, of one scale per tensor or per channel of a weight"
            f"{', signed and with zero point 0' if form.symmetric else ''}: not {shown}. Prepare the model with "
            f"{form.preset!r}."
        )


def check_operators(file: Builder, target: str | None) -> None:
    """Raises :class:`ExportError` if a file has operators or types that a runtime does not take; it says which."""
    if target is None or not TARGETS[target].scatters:
        return
    held, found = {one.name: one.data_type for one in file.initializers}, set[str]()
    for node in file.nodes:
        how = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        sorts = node.op_type == "TopK" and node.input[1] not in held
        if sorts or node.op_type in ("Compress", "CumSum") or (node.op_type == "ScatterND" and "reduction" in how):
            found.add(node.op_type)
        held |= {node.output[0]: how["to"]} if node.op_type == "Cast" else {}
    found |= {TensorProto.DataType.Name(one) for one in (TensorProto.DOUBLE, TensorProto.UINT8) if one in held.values()}
    if found:
        raise ExportError(f"target={target!r} has no {listed(sorted(found))}, which the file needs: leave target out.")


def _odd(graph: Graph, root: nn.Module, form: Form) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        quantizer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(quantizer, FakeQuantize) or not quantizer.fake_quant_enabled:
            continue
        weight = getattr(node.args[0], "op", "") == "get_attr"
        if quantizer.quant_max - quantizer.quant_min != 255:
            yield str(node.target), f"{quantizer.spec.bits} bits"
        elif quantizer.grouped:
            yield str(node.target), "a scale per group of in-degrees"
        elif quantizer.channel_dim is not None and not weight:
            yield str(node.target), "a scale per channel"
        elif form.symmetric and (quantizer.quant_min == 0 or bool(quantizer.zero_point.any())):
            yield str(node.target), "unsigned" if quantizer.quant_min == 0 else "a zero point"
