"""``.pt2`` files: prepared and integer modules as torch.export's programs, for any sizes of the graph.

A prepared module becomes one of torch's own operators alone, which loads where dqconvert is not installed. An integer
module keeps dqconvert's operators; ``import dqconvert`` is what a program with them needs.
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch_geometric.nn.aggr import Aggregation

import dqconvert
from dqconvert.calibrate import callee_of
from dqconvert.errors import ExportError
from dqconvert.kernels._operator import DEFINITIONS
from dqconvert.kernels.fake_quantize import plain_fake_quantize
from dqconvert.lower.evaluation import evaluation_of, refused
from dqconvert.lower.module import IntegerModule
from dqconvert.lower.runtime import rows_named
from dqconvert.ops import PYG, package_of
from dqconvert.prepared import PreparedModule
from dqconvert.prepared.explain import failed
from dqconvert.pt2_inputs import plain_inputs, where
from dqconvert.quant import FakeQuantize
from dqconvert.quant.memo import Remembered
from dqconvert.trace.given import calls_of
from dqconvert.trace.method import Method, fits
from dqconvert.trace.note import note_of
from dqconvert.trace.unchanged import without_reads
from dqconvert.words import listed, raised

METADATA = "dqconvert.json"
"""The file in the archive that says what the program was made of."""


def pt2_bytes(module: nn.Module, example_inputs: Any = None) -> bytes:
    """Returns the contents of a ``.pt2`` file, which :func:`torch.export.load` reads.

    Args:
        module: A prepared module with ranges, or an integer module; it is not changed.
        example_inputs: Chooses among the graphs of a forward that was called on several forms of arguments.

    Raises:
        ExportError: If the module holds what torch.export cannot say; the message names the node, its layer and line.
    """
    program = program_of(module, example_inputs)
    kind: Any = module
    about = {
        "dqconvert": dqconvert.__version__,
        "torch": torch.__version__,
        "form": "integer" if isinstance(module, IntegerModule) else "prepared",
        "model": kind.report.model,
        "qconfig": kind.qconfig.to_dict() if isinstance(module, PreparedModule) else None,
        "inputs": [node.name for node in program.graph.find_nodes(op="placeholder")][-_inputs(program) :],
    }
    held = io.BytesIO()
    torch.export.save(program, held, extra_files={METADATA: json.dumps(about)})
    return held.getvalue()


def _inputs(program: ExportedProgram) -> int:
    return len(program.graph_signature.user_inputs)


def program_of(module: Any, example_inputs: Any = None, *, strict: bool = False) -> ExportedProgram:
    """Returns a module as a program of torch.export, whose graphs may have any sizes.

    Its arguments are those of forward that its graph reads, by position, in their order; a data object's fields are
    arguments of their names, tensors in a dict of its name and their keys
    (:func:`~dqconvert.pt2_inputs.name_of_part`). Of a prepared module it computes bit for bit what ``fuse=False``
    does; values that no quantizer rounds, as the results of presets with a ``+``, a fused operator may add up in
    another order (1e-6 off).

    Args:
        module: As :func:`pt2_bytes`.
        example_inputs: Likewise.
        strict: Whether torch.export looks at the generated code through TorchDynamo.

    Raises:
        ExportError: As :func:`pt2_bytes`.

    Example:
        >>> from torch_geometric.nn import SAGEConv
        >>> module, _ = dqconvert.prepare(SAGEConv(8, 4), "int8-ptq")
        >>> x, edge_index = torch.randn(9, 8), torch.randint(9, (2, 30))
        >>> dqconvert.calibrate(module, (x, edge_index))
        >>> program = program_of(module)
        >>> torch.equal(program.module()(x, edge_index), module.eval()(x, edge_index))
        True
    """
    module.check_unchanged()
    _check_ranges(module)
    root, graph = _plain_graph(module, _chosen(module, example_inputs))
    _count_rows(root, graph)
    arguments, shapes = plain_inputs(graph)
    plain = GraphModule(root, graph).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(plain, arguments, dynamic_shapes=shapes, strict=strict)
            if isinstance(module, PreparedModule) and _ours(program):
                program = program.run_decompositions(_definitions())
    except Exception as error:  # whatever torch raises on an operation that it cannot follow
        raise ExportError(f"{_place(error, plain)}torch.export cannot follow it: {raised(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # of no use in a file, which would hold paths of this machine
    if isinstance(module, PreparedModule) and (ours := _ours(program)):
        raise ExportError(f"the program would need operators of dqconvert, which it is to do without: {listed(ours)}")
    return program


def _ours(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if str(node.target).startswith("dqconvert")}


def _definitions() -> dict[Any, Any]:
    return {getattr(torch.ops.dqconvert, name).default: plain for name, plain in DEFINITIONS.items()}


def _place(error: Exception, plain: GraphModule) -> str:
    """Returns where in a graph an error was raised, as far as torch says; it is run node by node, or its code is."""
    named = re.search(r"While executing %(\w+) :", str(error))
    nodes = {node.name: node for node in plain.graph.nodes}
    found = failed(error, plain, nodes)
    node = found[0] if found is not None else nodes.get(named[1]) if named is not None else None
    return "" if node is None else where(node)


def _check_ranges(module: Any) -> None:
    if isinstance(module, PreparedModule):
        for path, quantizer in module.quantizers():
            if not quantizer.is_observed():
                raise ExportError(
                    f"{path} has no range: train the module, or run dqconvert.calibrate, and export then."
                )


def _chosen(module: Any, example_inputs: Any) -> Method:
    """Returns the graph of the method that calling the module runs, for arguments of the form of the example's."""
    methods = [
        method
        for method in module.all_methods()
        if method.name == module.called_method and refused(method.graph) is None
    ]
    if example_inputs is not None:
        call = next(calls_of(callee_of(module), example_inputs), None)
        if call is None:
            raise ExportError("example_inputs hold nothing: pass one call's worth of inputs.")
        methods = [method for method in methods if fits(method.graph, call.args, call.kwargs)]
    if not methods:
        raise ExportError(
            f"{module.called_method} has no graph for evaluation on such inputs: call the module once on them, in "
            f"evaluation, before the export."
        )
    return methods[0]


# -- the graph ---------------------------------------------------------------------------------------------------


class _Rounding(nn.Module):
    """A quantizer in evaluation, whose grid is a constant.

    Args:
        quantizer: With a range.
    """

    def __init__(self, quantizer: FakeQuantize) -> None:
        super().__init__()
        self.register_buffer("scale", quantizer.scale.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())
        self.ends = quantizer.quant_min, quantizer.quant_max
        self.dims = quantizer.row_dim, quantizer.channel_dim

    def forward(self, x: Tensor, protected: Tensor | None = None, groups: Tensor | None = None) -> Tensor:
        row_dim, dim = self.dims
        scale, zero_point = self.get_buffer("scale"), self.get_buffer("zero_point")
        if groups is not None:
            scale, zero_point, dim = scale[groups.long()], zero_point[groups.long()], row_dim
        return plain_fake_quantize(x, scale, zero_point, *self.ends, None, row_dim, dim)[0].to(x.dtype)


def _plain_graph(module: Any, method: Method) -> tuple[nn.Module, Graph]:
    """Returns the graph that evaluates a method, and the module that holds what it reads."""
    graph = method.eval_graph or method.graph
    if isinstance(module, IntegerModule):
        return module, without_reads(copy.deepcopy(graph))
    graph = evaluation_of(graph, module)
    root = nn.Module()  # holds what the graph reads, quantizers as constants
    for node in graph.nodes:
        if node.op == "get_attr":
            _hold(root, str(node.target), _attribute(module, str(node.target)))
        elif node.op == "call_module":
            called = module.get_submodule(str(node.target))
            if isinstance(called, Remembered):
                node.op, node.target = "call_function", called.function
            else:
                _hold(root, str(node.target), _Rounding(called) if isinstance(called, FakeQuantize) else called)
    return root, graph


def _count_rows(root: nn.Module, graph: Graph) -> None:
    """Gives poolings, softmaxes, aggregations and norms that count the rows named by an index their number, in place.

    PyG makes a Python number of the largest index, which the program of other values would be held to.
    """
    for node in list(graph.nodes):
        called: Any = node.target
        layer = root.get_submodule(str(called)) if node.op == "call_module" else None
        if isinstance(layer, Aggregation) or (layer is not None and package_of(type(layer)) == PYG):
            called = layer.forward
        elif node.op != "call_function" or package_of(called) != PYG:
            continue
        try:
            given = inspect.signature(called).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):
            continue
        given.apply_defaults()
        index = next((given.arguments[name] for name in ("index", "batch") if name in given.arguments), None)
        size = next((name for name in ("dim_size", "num_nodes", "size", "batch_size") if name in given.arguments), None)
        named = isinstance(index, Node) and note_of(index).ndim == 1 and given.arguments.get("ptr") is None
        if named and size is not None and given.arguments[size] is None:
            with graph.inserting_before(node):
                rows = graph.call_function(rows_named, (index,))
            given.arguments[size] = rows
            node.args, node.kwargs = given.args, given.kwargs


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _hold(root: nn.Module, path: str, value: Any) -> None:
    """Sets a value under a path. The user's modules on the way are copied, which must not hold it themselves."""
    *parents, name = path.split(".")
    for parent in parents:
        known = root._modules.get(parent)
        inner = nn.Module() if known is None else object.__new__(type(known))
        if known is not None:
            inner.__dict__ = known.__dict__ | {"_modules": dict(known._modules)}
        root._modules[parent] = inner
        root = inner
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)
