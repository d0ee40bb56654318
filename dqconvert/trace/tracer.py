"""Float module in, verified ``torch.fx`` graph out."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch_geometric.nn.conv import MessagePassing

from dqconvert.errors import GuardError, TraceError
from dqconvert.trace import leaves, verify
from dqconvert.trace.adjacency import with_visible_messages
from dqconvert.trace.copies import deepcopy, set_mode, working_copy
from dqconvert.trace.empty_guards import EmptyGuards
from dqconvert.trace.grow import drop_edges, enlarge, shrink
from dqconvert.trace.guards import only_in
from dqconvert.trace.inputs import Inputs, bind, method_of
from dqconvert.trace.interception import Interception, seen_through
from dqconvert.trace.islands import Island
from dqconvert.trace.make_inputs import make_inputs
from dqconvert.trace.merge import merge_modes, remove_unused, same_structure
from dqconvert.trace.method import Method
from dqconvert.trace.module import TracedModule
from dqconvert.trace.note import Note, annotate
from dqconvert.trace.products import keep_products
from dqconvert.trace.randomness import preserved_random_state
from dqconvert.trace.record import record
from dqconvert.trace.recordings import part_of, record_all
from dqconvert.trace.unfuse import Unfused, has_sparse, unfuse
from dqconvert.trace.weighing import Values, set_values
from dqconvert.words import listed


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A float model as a graph.

    Attributes:
        module: The model as a :class:`TracedModule`: same parameters, same outputs, bit for bit.
        islands: Modules kept whole, and why.
        remarks: What could not be checked, in words for the report.
        products: Layers whose messages a graph cannot show, because they compute something else; and where.
        left: Attributes that the method sets and the graph does not.
    """

    module: TracedModule
    islands: tuple[Island, ...] = ()
    remarks: tuple[str, ...] = field(default=())
    products: tuple[Island, ...] = ()
    left: tuple[str, ...] = ()

    def method(self, name: str, how: str = "named") -> Method:
        """Returns the graphs under the name of what they are of; ``how``: how it came to be traced, in words."""
        graph, eval_graph = self.module.graph, self.module.eval_graph
        return Method(name=name, graph=graph, eval_graph=eval_graph, islands=self.islands, how=how)


def trace(model: nn.Module, example_inputs: Any = None, *, method: str = "forward", strict: bool = False) -> Trace:
    """Turns a float PyG model into a graph whose nodes know their stage, module and source line.

    The model is copied first and never changed. The graph is checked against it, outputs and gradients, in both modes,
    on the example and on a second input of other sizes. Of a large example a part stands for the example in that; then
    the outputs in evaluation are checked on the whole.

    Args:
        example_inputs: A tuple or dict of the method's arguments, a PyG data object, or :class:`Inputs`; ``None`` makes
            them up.
        method: The method to trace: ``"encode"``, or ``"encoder.forward"`` of a part.
        strict: Raise where a module would have to stay a float leaf.

    Raises:
        TraceError: If inputs cannot be made up or are rejected, if the root module branches on tensor values, or if
            the graph does not compute what the model computes.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> traced = trace(GCNConv(8, 4)).module
        >>> [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
        ['lin', 'aggr_module']
    """
    with preserved_random_state():
        root = working_copy(model)
        if example_inputs is None:
            made, other = make_inputs(deepcopy(root), method)
            made = _taken_in(root, method, made)
            second = replace(other, modes=made.modes) if other.given else None
            return _trace_on(model, root, made, second, method, strict)
        inputs = example_inputs if isinstance(example_inputs, Inputs) else bind(root, method, example_inputs)
        # Lazy layers settle their shapes here, on our copy.
        inputs = _taken_in(root, method, inputs)
        found = _trace_on_a_part(model, deepcopy(root), inputs, method, strict)
        found = found or _trace_on(model, root, inputs, _second(root, inputs, method), method, strict)
        return replace(found, remarks=(*_taken(inputs, example_inputs), *found.remarks))


def _taken_in(root: nn.Module, method: str, inputs: Inputs) -> Inputs:
    """Finds the modes in which the model takes the inputs. Lazy layers settle their shapes in ``root``.

    Raises:
        TraceError: If it takes them in neither.
    """
    refused: dict[bool, TraceError] = {}
    for training in (False, True):
        called = root if leaves.uninitialized(root) else deepcopy(root)
        try:
            run_once(called, method, replace(inputs, modes=(training,)))
        except TraceError as error:
            refused[training] = error
    if len(refused) == 2:
        raise refused[False]
    for training, failure in refused.items():
        cause = failure.__cause__
        return replace(inputs, modes=(not training,), refusal=f"{type(cause).__name__}: {cause}")
    return inputs


def _taken(inputs: Inputs, example: Any) -> list[str]:
    """Returns a remark for arguments that the user did not pass one by one, and that later calls have to pass."""
    optional = [
        name for name in inputs.given if inputs.signature.parameters[name].default is not inspect.Parameter.empty
    ]
    if isinstance(example, Tensor | tuple | dict | Inputs) or not optional:
        return []
    names = [name for name in inputs.signature.parameters if name in inputs.given]
    return [f"the example_inputs were taken as {', '.join(names)}: later calls pass {listed(sorted(optional))}, too"]


def _trace_on_a_part(model: nn.Module, root: nn.Module, inputs: Inputs, method: str, strict: bool) -> Trace | None:
    """Traces on a part of large inputs; ``None`` if they are not large, or the part does not stand for all."""
    part = shrink(inputs)
    if part is None or len(inputs.modes) == 1:
        return None
    try:
        run_once(deepcopy(root), method, part)
        found = _trace_on(model, root, part, _second(root, part, method), method, strict)
    except TraceError:  # a fixed number of nodes, say: all of them may do
        return None
    if not _holds(root, found.module, inputs, method):
        return None
    remark = f"traced on a part of the example inputs ({_summary(part)}); checked on all of them in evaluation"
    return replace(found, remarks=(*found.remarks, remark))


def _trace_on(
    model: nn.Module, root: nn.Module, inputs: Inputs, second: Inputs | None, method: str, strict: bool
) -> Trace:
    """Traces ``root``, a copy of ``model``, on these inputs."""
    fused = any(layer.fuse for layer in leaves.message_passing_layers(root))
    one_by_one = fused and has_sparse(inputs)
    as_given = deepcopy(root)
    layers = unfuse(root, inputs, method) if one_by_one else Unfused()
    recorded = record_all(root, inputs, second, method, strict, layers)
    if fused and recorded.sparse and not one_by_one:  # the model makes an adjacency of its own
        one_by_one, layers = True, unfuse(root, inputs, method)
        recorded = record_all(root, inputs, second, method, strict, layers)
    if layers.both:
        recorded.remarks.append("messages over a sparse adjacency are computed one by one where they are quantized")
    train, evaluate, islands = recorded.train, recorded.evaluate, recorded.islands
    eval_graph: Graph | None = evaluate
    if train is evaluate:
        eval_graph = None
    elif same_structure(train, evaluate) is None:
        merge_modes(train, evaluate)
        eval_graph = None
    for graph in (train, evaluate):
        remove_unused(graph)
    empty = drop_edges(inputs)
    guards = EmptyGuards([] if empty is None else [train] if eval_graph is None else [train, eval_graph])
    traced = TracedModule.build(deepcopy(root), train, eval_graph)
    if empty is not None and guards:
        guards.settle(root, traced, replace(empty, modes=inputs.modes), method)
    if len(inputs.modes) == 1:
        recorded.remarks.append(_in_one_mode(traced, inputs, method))
    both = [inputs] if recorded.second is None else [inputs, recorded.second]
    with seen_through(root):  # also where the recording met nothing: a layer may ask whether its input is trained
        unchecked = _verify(root, traced, both, method, frozenset(islands))
        remark = keep_products(traced, as_given, both, method)
    _restore_modes(model, traced)
    for path, module in nn.Module.named_modules(traced):
        if isinstance(module, MessagePassing) and not any(f"{path}.".startswith(f"{name}.") for name in islands):
            set_values(module, Values.OWN)  # the graph multiplies
            module.fuse = model.get_submodule(path).fuse  # as it was, should the module be traced again
    left = tuple(dict.fromkeys(recorded.left))
    if left:
        recorded.remarks.append(
            f"{method} keeps something for later in {', '.join(map(repr, left))}, and its graph does not: what reads "
            f"that finds what was there before"
        )
    remarks = (*recorded.remarks, *unchecked, *([] if remark is None else [remark]))
    inside = frozenset(islands)
    products = tuple(product for product in layers.products if product.module not in inside)
    return Trace(module=traced, islands=tuple(islands.values()), remarks=remarks, products=products, left=left)


def _restore_modes(model: nn.Module, traced: nn.Module) -> None:
    modes = {path: module.training for path, module in nn.Module.named_modules(model)}
    for path, module in nn.Module.named_modules(traced):
        module.training = modes[path]


# -- inputs ------------------------------------------------------------------------------------------------------


def _second(root: nn.Module, inputs: Inputs, method: str) -> Inputs | None:
    """Finds inputs of other sizes that the model takes."""
    for second in enlarge(inputs):
        try:
            run_once(deepcopy(root), method, second)
        except TraceError:  # this guess at what the rows are was wrong
            continue
        return second
    return None


def run_once(root: nn.Module, method: str, inputs: Inputs) -> None:
    """Calls a method in evaluation mode, if that is one of its modes, to see that it takes the inputs.

    Raises:
        TraceError: If it does not.
    """
    args, kwargs = inputs.copied().call()
    training = False not in inputs.modes
    set_mode(root, training)
    try:
        with torch.set_grad_enabled(training):
            method_of(root, method)(*args, **kwargs)
    except Exception as error:
        raise TraceError(
            f"{type(root).__name__}.{method} rejects the example_inputs ({_summary(inputs)}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _summary(inputs: Inputs) -> str:
    def one(value: Any) -> str:
        return f"{str(value.dtype)[6:]} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

    return ", ".join(f"{name}: {one(value)}" for name, value in inputs.arguments.items() if name in inputs.given)


def _in_one_mode(traced: TracedModule, inputs: Inputs, method: str) -> str:
    """Lets a graph refuse, in place, the mode in which the model refuses the inputs; returns a remark."""
    path, graph = part_of(method), traced.graph
    inputs_end = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs_end[-1] if inputs_end else graph._root):
        flag = annotate(graph.create_node("get_attr", f"{path}.training" if path else "training"), Note(module=path))
    with graph.inserting_after(flag):
        check = graph.call_function(only_in, (flag, inputs.modes[0], inputs.refusal))
        annotate(check, Note(module=path))
    traced.recompile()
    names = ", ".join(name for name in inputs.signature.parameters if name in inputs.given)
    mode, other = ("training", "evaluation") if inputs.modes[0] else ("evaluation", "training")
    return f"{method}({names}) was traced in {mode} alone: in {other} the model refuses it ({inputs.refusal})"


# -- checking ----------------------------------------------------------------------------------------------------


def _holds(root: nn.Module, traced: TracedModule, inputs: Inputs, method: str) -> bool:
    """Returns True if the graph computes in evaluation what the model does, on inputs it was not traced on."""
    expected = verify.outputs(root, method, inputs.map(with_visible_messages))
    try:
        actual = verify.outputs(traced.for_one_run(), "forward", inputs)
    except GuardError:  # the model branches on sizes
        return False
    return verify.same_outputs(expected, actual)


def _verify(
    root: nn.Module, traced: TracedModule, all_inputs: list[Inputs], method: str, kept: frozenset[str]
) -> list[str]:
    """Remarks on what could not be checked."""
    remarks: dict[str, None] = {}
    for position, inputs in enumerate(all_inputs):
        for training in inputs.modes:
            difference = verify.compare(root, method, traced, inputs, training, remarks=remarks)
            if difference is not None:
                values: dict[str, Tensor] = {}
                interception = Interception(root)
                with interception.active():
                    record(interception, inputs, method, training, kept, values)
                node = verify.first_wrong_node(traced, inputs, training, values)
                mode = "training" if training else "evaluation"
                which = "the example inputs" if position == 0 else "a second input of other sizes"
                raise TraceError(
                    f"the traced graph of {type(root).__name__} does not compute what the model computes: in {mode} "
                    f"mode on {which}, {difference}; {node}. This is a limit of the tracer; please report the model."
                )
    return list(remarks)[:1]
