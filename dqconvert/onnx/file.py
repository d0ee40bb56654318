"""A prepared module as an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import helper
from torch.fx import Graph

from dqconvert import __version__
from dqconvert.calibrate import callee_of
from dqconvert.errors import ConfigError, ExportError, GuardError, LoweringError
from dqconvert.lower.check import check_ready
from dqconvert.lower.evaluation import evaluation_of, refused
from dqconvert.onnx.builder import Builder
from dqconvert.onnx.inputs import Inputs, Steps
from dqconvert.onnx.targets import check_operators, check_target, form_for
from dqconvert.onnx.values import TYPES, Wire
from dqconvert.onnx.walk import walk
from dqconvert.onnx.writing import Writing
from dqconvert.prepared.module import PreparedModule, class_names
from dqconvert.trace.check import Check
from dqconvert.trace.given import calls_of
from dqconvert.trace.leaves import has_hooks
from dqconvert.trace.method import Method, fits, words_of
from dqconvert.trace.unchanged import checks

PREFIX = "dqconvert."
"""Of the names in a file's metadata."""


_MOST = 1 << 31
"""What the format of the file cannot hold."""


def file_of(module: Any, example_inputs: Any = None, *, exact: bool = False, target: str | None = None) -> bytes:
    """Returns the bytes of a prepared module as an ONNX file, see :func:`dqconvert.export.export`."""
    if not isinstance(module, PreparedModule):
        raise ExportError(
            "format='onnx' takes a prepared module, whose roundings ONNX has operators for: export that, not the "
            "integer module that was made of it."
        )
    model = model_of(module, example_inputs, exact=exact, target=target)
    if (size := model.ByteSize()) >= _MOST:
        raise ExportError(f"format='onnx': the file would have {size:,} bytes, and ONNX files have less than 2 GiB.")
    return model.SerializeToString()


def model_of(
    module: PreparedModule, example_inputs: Any = None, *, exact: bool = False, target: str | None = None
) -> onnx.ModelProto:
    """Returns a prepared module as ONNX.

    Raises:
        ExportError: If it has no ranges, or something has no form in ONNX, or none that the target takes.
    """
    form_for(target, exact)
    method = _method(module, example_inputs)
    if has_hooks(module):
        raise ExportError("export: the module has hooks, which an exported file cannot run: remove them first.")
    graph = evaluation_of(method.eval_graph or method.graph, module)
    try:
        Check(module, checks(method.graphs()))(module)
        check_ready(graph, module)
    except (GuardError, LoweringError) as error:
        raise ExportError(f"export: {error}") from error
    check_target(graph, module, target)
    return model_of_graph(graph, module, exact=exact, target=target)


def model_of_graph(
    graph: Graph, module: PreparedModule, *, exact: bool = False, target: str | None = None
) -> onnx.ModelProto:
    """Returns a graph of evaluation as ONNX.

    Args:
        graph: From :func:`dqconvert.lower.evaluation.evaluation_of`.
        module: The module that it is of.
    """
    form, file = form_for(target, exact), Builder()
    writing = Writing(file, Inputs(file), exact=exact, scatters=form.scatters, plain=form.plain)
    returned = walk(writing, graph, module)
    check_operators(file, target)
    outputs = [
        helper.make_tensor_value_info(
            file.returned(name, wire), TYPES[wire.dtype], [f"{name}_{dim}" for dim in range(wire.ndim)]
        )
        for name, wire in _outputs(writing, returned, "output")
    ]
    read = {name for node in file.nodes for name in node.input} | {one.name for one in outputs}
    initializers = [one for one in file.initializers if one.name in read]
    inputs = [one for name, one in writing.inputs.infos.items() if name in read or len(writing.inputs.steps[name]) == 1]
    written = helper.make_graph(file.nodes, module.report.model, inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", file.opset)]
    model = helper.make_model(
        written, opset_imports=opsets, ir_version=10, producer_name="dqconvert", producer_version=__version__
    )
    steps = {one.name: writing.inputs.steps[one.name] for one in inputs}
    about = _metadata(module, steps, exact) | {"arguments": json.dumps(_arguments(graph))}
    helper.set_model_props(model, {PREFIX + name: text for name, text in about.items()})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"export: what was written is no valid ONNX; please report it: {error}") from error
    return model


def _method(module: PreparedModule, example_inputs: Any) -> Method:
    """Returns the graph for inputs: of the method that calling the module runs."""
    methods = [method for method in module.all_methods() if method.name == module.called_method]
    if example_inputs is not None:
        try:
            call = next(calls_of(callee_of(module), example_inputs))
        except (ConfigError, StopIteration) as error:
            raise ExportError(f"export: example_inputs do not fit: {error}") from error
        methods = [method for method in methods if fits(method.graph, call.args, call.kwargs)]
    if not methods:
        forms = "; ".join(words_of(method.graph) for method in module.all_methods())
        raise ExportError(
            f"export: the module has no graph for such inputs: call it on them once. It has graphs for: {forms}."
        )
    if (refusal := refused(methods[0].graph)) is not None:
        raise ExportError(f"export: the model refuses such arguments in evaluation: {refusal}")
    return methods[0]


def _arguments(graph: Graph) -> dict[str, Any]:
    """Returns the names of forward's arguments, in order, with the values that those have that are left out."""
    nodes = [node for node in graph.find_nodes(op="placeholder") if not str(node.target).startswith("*")]
    defaults = {str(node.target): node.args[0] if node.args else None for node in nodes}
    return {name: value if isinstance(value, bool | int | float | str) else None for name, value in defaults.items()}


def _outputs(w: Writing, value: Any, name: str) -> Iterator[tuple[str, Wire]]:
    """Yields what forward returns, each tensor with its name: by its key or place where there are several."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _outputs(w, item, f"{name}.{'__'.join(map(str, key)) if isinstance(key, tuple) else key}")
    elif isinstance(value, tuple | list):
        for place, item in enumerate(value):
            yield from _outputs(w, item, f"{name}.{place}")
    elif value is not None:
        yield name, w.wire(value)


def _metadata(module: PreparedModule, steps: Mapping[str, Steps], exact: bool) -> dict[str, str]:
    try:
        config = json.dumps(module.qconfig.to_dict())
    except ConfigError:  # a quantizer of the user's own
        config = repr(module.qconfig)
    return {
        "version": __version__,
        "model": module.report.model,
        "config": config,
        "classes": json.dumps(class_names(module)),
        "inputs": json.dumps(steps),
        "exact": json.dumps(exact),
    }
