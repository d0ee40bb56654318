"""Float module in, verified ``torch.fx`` graph out."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch_geometric.nn.conv import MessagePassing

from dqconvert.errors import GuardError, TraceError
from dqconvert.trace import leaves, verify
from dqconvert.trace.adjacency import with_visible_messages
from dqconvert.trace.attributes import Stateful
from dqconvert.trace.choices import choices_among, pin_choices
from dqconvert.trace.copies import deepcopy, set_mode, working_copy
from dqconvert.trace.grow import drop_edges, enlarge, shrink
from dqconvert.trace.inputs import Inputs, bind, method_of
from dqconvert.trace.interception import Interception, NoProduct, seen_through
from dqconvert.trace.islands import Island, drop_children, no_graph, refuse_loops
from dqconvert.trace.make_inputs import make_inputs
from dqconvert.trace.merge import add_sizes, merge_modes, remove_unused, same_graph, same_structure
from dqconvert.trace.method import Method
from dqconvert.trace.module import TracedModule
from dqconvert.trace.note import Note, annotate, note_of
from dqconvert.trace.products import keep_products
from dqconvert.trace.record import record
from dqconvert.trace.runtime import guard, only_in
from dqconvert.trace.unfuse import Unfused, has_sparse, unfuse
from dqconvert.trace.values import Untraceable
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
        model: Any ``nn.Module``.
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
    """The inputs, with the modes in which the model takes them. Lazy layers settle their shapes in ``root``.

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
    """A remark for arguments that the user did not pass one by one, and that later calls have to pass."""
    optional = [
        name for name in inputs.given if inputs.signature.parameters[name].default is not inspect.Parameter.empty
    ]
    if isinstance(example, Tensor | tuple | dict | Inputs) or not optional:
        return []
    names = [name for name in inputs.signature.parameters if name in inputs.given]
    return [f"the example_inputs were taken as {', '.join(names)}: later calls pass {listed(sorted(optional))}, too"]


def _trace_on_a_part(model: nn.Module, root: nn.Module, inputs: Inputs, method: str, strict: bool) -> Trace | None:
    """The trace on a part of large inputs; ``None`` if they are not large, or the part does not stand for all."""
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
    """The trace of ``root``, a copy of ``model``, on these inputs."""
    fused = any(layer.fuse for layer in leaves.message_passing_layers(root))
    one_by_one = fused and has_sparse(inputs)
    as_given = deepcopy(root)
    layers = unfuse(root, inputs, method) if one_by_one else Unfused()
    recorded = _record_all(root, inputs, second, method, strict, layers)
    if fused and recorded.sparse and not one_by_one:  # the model makes an adjacency of its own
        one_by_one, layers = True, unfuse(root, inputs, method)
        recorded = _record_all(root, inputs, second, method, strict, layers)
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
    guards = {} if empty is None else _without_empty_guards([train] if eval_graph is None else [train, eval_graph])
    traced = TracedModule.build(deepcopy(root), train, eval_graph)
    if empty is not None and guards:
        _settle_empty_guards(root, traced, replace(empty, modes=inputs.modes), method, guards)
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


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leaves every global random generator as it was."""
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _restore_modes(model: nn.Module, traced: nn.Module) -> None:
    modes = {path: module.training for path, module in nn.Module.named_modules(model)}
    for path, module in nn.Module.named_modules(traced):
        module.training = modes[path]


# -- inputs ------------------------------------------------------------------------------------------------------


def _second(root: nn.Module, inputs: Inputs, method: str) -> Inputs | None:
    """Inputs of other sizes that the model takes."""
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


# -- recording ---------------------------------------------------------------------------------------------------


@dataclass
class _Recorded:
    """What the recordings of a model gave.

    Attributes:
        train: The graph of a training forward; its notes know both sizes if there was a second input.
        evaluate: The graph of an evaluation forward; the same one where the model refuses one of the two.
        islands: Modules kept whole.
        second: The second input, if the graphs hold for it.
        sparse: Whether messages were passed over a sparse adjacency.
        remarks: What could not be checked.
        left: Attributes that were set.
    """

    train: Graph
    evaluate: Graph
    islands: dict[str, Island]
    second: Inputs | None
    sparse: bool
    remarks: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def _record_all(
    root: nn.Module, inputs: Inputs, second: Inputs | None, method: str, strict: bool, layers: Unfused
) -> _Recorded:
    """Records both modes on both inputs; a module that cannot be recorded in one of the four stays whole in all."""
    interception = Interception(root, layers.both, [product.module for product in layers.products])
    for product in layers.products:
        if strict:
            raise no_graph(root, product)
    islands: dict[str, Island] = {}
    while True:
        try:
            with interception.active():
                return _record_four(interception, inputs, second, method, islands)
        except NoProduct as failure:
            interception.fused = frozenset(interception.fused) - {failure.layer}
        except Stateful as found:
            interception.stateful.add(found.key)
        except Untraceable as failure:
            path = failure.module
            while path in islands and path:
                path = path.rpartition(".")[0]
            island = Island(module=failure.module, reason=failure.reason, source=failure.source)
            if strict or not path or f"{_part(method)}.".startswith(f"{path}."):  # the module that the method is of
                raise no_graph(root, island) from None
            drop_children(islands, path)
            islands[path] = replace(island, module=path)


def _record_four(
    interception: Interception, inputs: Inputs, second: Inputs | None, method: str, islands: dict[str, Island]
) -> _Recorded:
    remarks: dict[str, None] = {}
    left: list[str] = []
    graphs = {
        mode: record(interception, inputs, method, mode, frozenset(islands), remarks=remarks, left=left)
        for mode in inputs.modes
    }
    train, evaluate = graphs[inputs.modes[0]], graphs[inputs.modes[-1]]
    found = _Recorded(train, evaluate, islands, second, interception.met_sparse, list(remarks), left)
    choices = choices_among(interception, inputs, method, frozenset(islands), evaluate)
    if second is None:
        for graph in graphs.values():
            pin_choices(graph, choices)
        found.remarks.append("no second input of other sizes could be derived: checked on the example inputs alone")
        return found
    for training, graph in graphs.items():
        other = record(interception, second, method, training, frozenset(islands))
        different = same_graph(graph, other)
        if different is None:
            add_sizes(graph, other)
            refuse_loops(graph)
        else:
            _explain(different, found, _part(method))
        pin_choices(graph, choices)
    return found


def _part(method: str) -> str:
    """The path of the module that a method is of."""
    return method.rpartition(".")[0]


def _explain(different: tuple[Node, Node], found: _Recorded, part: str) -> None:
    """What it means that the second input gave another graph: a size was branched on, or became a constant.

    Args:
        different: Where the graphs part.
        found: What was recorded; takes a remark.
        part: The path of the module that the recorded method is of.

    Raises:
        Untraceable: To keep the module whole that did it.
    """
    node, other = different
    note = note_of(node)
    if guard in (node.target, other.target):
        if note.module != part:
            raise Untraceable(note.module, "branches on a size", note.source)
        found.second = None
        found.remarks.append(
            f"{note.source}: the forward branches on a size; the graph holds the branch of the example inputs and "
            f"checks for it when it runs"
        )
        return
    raise Untraceable(
        note.module,
        f"turns a size or a value into a Python number where the recording cannot follow: {_words(node)} is "
        f"{_words(other)} on inputs of another size",
        note.source,
    )


def _words(node: Node) -> str:
    """A call in the words of the code that made it."""
    if node.op in ("output", "placeholder"):
        return f"the {node.op}"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    numbers = [str(arg) for arg in [*node.args, *node.kwargs.values()] if isinstance(arg, int | float)]
    return f"{name}(…{', '.join(numbers)})"


def _without_empty_guards(graphs: list[Graph]) -> dict[Node, Any]:
    """Has the guards of graphs that ask whether there are edges say yes; returns them with their arguments."""
    guards = [node for graph in graphs for node in graph.nodes if node.target is guard and _on_emptiness(node)]
    saved = {node: node.args for node in guards}
    for node in guards:
        node.args = (0, "==", 0, True, node.args[4])
    return saved


def _settle_empty_guards(
    root: nn.Module, traced: TracedModule, empty: Inputs, method: str, guards: dict[Node, Any]
) -> None:
    """Drops the guards that :func:`_without_empty_guards` found, or puts them back.

    Layers shortcut on ``index.numel() == 0``. Where the graph agrees with the model on a graph without edges, the
    shortcut changed nothing, and empty graphs need not be refused.
    """
    try:
        agreed = all(verify.compare(root, method, traced, empty, mode) is None for mode in empty.modes)
    except (RuntimeError, IndexError, ValueError, GuardError):  # the model itself refuses graphs without edges
        agreed = False
    for node, args in guards.items():
        node.args = args
        if agreed:
            node.graph.erase_node(node)
    for graph in traced.graphs():
        remove_unused(graph)
    traced.recompile()


def _on_emptiness(node: Node) -> bool:
    left, symbol, right = node.args[:3]
    return (
        len(node.args) == 5
        and isinstance(left, Node)
        and f"{symbol} {right}" in ("== 0", "!= 0", "> 0", ">= 1", "< 1", "<= 0")
    )


def _in_one_mode(traced: TracedModule, inputs: Inputs, method: str) -> str:
    """Lets a graph refuse, in place, the mode in which the model refuses the inputs; returns a remark."""
    path, graph = _part(method), traced.graph
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
    """Whether the graph computes in evaluation what the model computes, on inputs that it was not traced on."""
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
