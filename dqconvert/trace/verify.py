"""Verifies a traced graph against the model that it came from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from dqconvert.trace.adjacency import with_visible_messages
from dqconvert.trace.copies import deepcopy, set_mode
from dqconvert.trace.inputs import Inputs, method_of
from dqconvert.trace.module import TracedModule
from dqconvert.trace.note import note_of
from dqconvert.trace.randomness import seed
from dqconvert.trace.runtime import store


class NoBackward(Exception):  # noqa: N818  (says what a run found before, it is no user's error)
    """A model whose outputs cannot be differentiated: it writes into what its own backward needs.

    Attributes:
        found: What :func:`run` found before.
    """

    def __init__(self, error: RuntimeError, found: dict[str, Tensor]) -> None:
        super().__init__(str(error).partition("\n")[0].partition(" Hint:")[0])
        self.found = found


def run(
    module: nn.Module, call: Callable[..., Any], inputs: Inputs, training: bool, *, written: bool = False
) -> dict[str, Tensor]:
    """Runs a forward and a backward and returns everything that they produced.

    Args:
        inputs: What it is given; stays as it is.
        written: Whether it writes into what it is given, which must then be no leaf.

    Returns:
        ``"output 0"`` …, ``"gradient of NAME"`` for the parameters and ``"gradient of input 0"`` … for floating point
        inputs, and ``"buffer NAME"`` for the buffers afterwards.

    Raises:
        NoBackward: If the backward fails.
    """
    seed()
    set_mode(module, training)
    leaves: list[Tensor] = []

    def fresh(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            return tensor
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1].clone() if written else leaves[-1]

    given = inputs.copied().map(fresh)
    args, kwargs = given.call()
    with torch.enable_grad():
        results = [value for value in pytree.tree_leaves(call(*args, **kwargs)) if isinstance(value, Tensor)]
    found = {f"output {i}": value.detach() for i, value in enumerate(results)}
    if written:
        held = [value for value in pytree.tree_leaves(given.call()) if isinstance(value, Tensor)]
        found |= {f"input {i} afterwards": value.detach() for i, value in enumerate(held)}
    loss = [
        (
            value.float()
            * torch.linspace(0.5, 1.5, max(value.numel(), 1)).to(value.device)[: value.numel()].view_as(value)
        ).sum()
        for value in results
        if value.is_floating_point() and value.requires_grad and value.layout == torch.strided
    ]
    if loss:
        try:
            torch.stack(loss).sum().backward()
        except RuntimeError as error:
            raise NoBackward(error, found) from error
    for name, parameter in nn.Module.named_parameters(module):
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad
    for index, leaf in enumerate(leaves):
        if leaf.grad is not None:
            found[f"gradient of input {index}"] = leaf.grad
    for name, buffer in nn.Module.named_buffers(module):
        found[f"buffer {name}"] = buffer
    return found


def outputs(model: nn.Module, method: str, inputs: Inputs) -> list[Tensor]:
    """Returns the outputs of a copy of a model in evaluation mode, without gradients."""
    seed()
    copied = set_mode(deepcopy(model), False)
    args, kwargs = inputs.copied().call()
    with torch.no_grad():
        results = pytree.tree_leaves(method_of(copied, method)(*args, **kwargs))
    return [value for value in results if isinstance(value, Tensor) and value.layout == torch.strided]


def same_outputs(expected: list[Tensor], actual: list[Tensor]) -> bool:
    """Returns True if two runs returned the same, bit for bit."""
    named = ({f"output {i}": value for i, value in enumerate(values)} for values in (expected, actual))
    return difference(*named) is None


def difference(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> str | None:
    """Returns what differs between two runs, in words; ``None`` if all values agree bit for bit."""
    for name in [*expected, *actual]:
        if name not in actual or name not in expected:
            return f"{name} exists only in the {'float model' if name in expected else 'graph'}"
        a, b = expected[name], actual[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name} is {a.dtype} {list(a.shape)} in the float model and {b.dtype} {list(b.shape)} in the graph"
        if a.layout == torch.strided and not _equal(a, b):
            worst = (a.double() - b.double()).abs().nan_to_num(float("inf")).max().item()
            return f"{name} differs by up to {worst:.3g}"
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    if _freed(a) or _freed(b):  # by a reversible layer, which computes its inputs again: reading them would crash
        return _freed(a) and _freed(b)
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _freed(value: Tensor) -> bool:
    return value.numel() > 0 and value.untyped_storage().nbytes() == 0


def compare(
    model: nn.Module,
    method: str,
    graph: TracedModule,
    inputs: Inputs,
    training: bool,
    as_given: bool = False,
    remarks: dict[str, None] | None = None,
) -> str | None:
    """Runs copies of the float model and of the graph on the same inputs and says what differs.

    Args:
        model: The float model.
        method: What the graph stands for.
        graph: The graph.
        inputs: What both are given.
        training: Whether in training mode.
        as_given: Whether the model gets connectivity in the form it has, not in the one that shows messages.
        remarks: Collects, as keys, what could not be compared.

    Threads that add up one sum take turns as it happens, so that a model's gradients may differ from run to run. What
    differs is run again on one thread, where they do not.
    """
    found = _compare(model, method, graph, inputs, training, as_given, remarks)
    if found is not None:
        with _repeatable():
            found = _compare(model, method, graph, inputs, training, as_given, remarks)
    return found


@contextmanager
def _repeatable() -> Iterator[None]:
    """Makes sums repeatable inside, as far as torch can do that."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=not strict or warn_only)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


def _compare(
    model: nn.Module,
    method: str,
    graph: TracedModule,
    inputs: Inputs,
    training: bool,
    as_given: bool,
    remarks: dict[str, None] | None,
) -> str | None:
    expected_on, actual_on = deepcopy(model), graph.for_one_run()
    # The graph takes connectivity in any form and turns it into the one that shows messages; the model gets that one.
    taken = inputs if as_given else inputs.map(with_visible_messages)
    written = any(node.target is store for node in graph.graph.nodes)
    given = taken if written else inputs
    try:
        expected = run(expected_on, method_of(expected_on, method), taken, training, written=written)
    except NoBackward as failure:
        # The graph changes nothing in place, so it may have gradients where the model has none.
        if remarks is not None:
            remarks[f"gradients could not be checked: the float model's own backward fails ({failure})"] = None
        try:
            actual = run(actual_on, actual_on.forward, given, training, written=written)
        except NoBackward as also:
            actual = also.found
        return difference(failure.found, {name: actual[name] for name in failure.found if name in actual})
    try:
        return difference(expected, run(actual_on, actual_on.forward, given, training, written=written))
    except NoBackward as failure:
        return f"the backward of the graph fails: {failure}"


def first_wrong_node(graph: TracedModule, inputs: Inputs, training: bool, recorded: dict[str, Tensor]) -> str:
    """Names the first node whose value is not the one in ``recorded`` (from a recording of the same inputs)."""
    module = set_mode(deepcopy(graph), training)
    wrong: list[str] = []

    class NodeByNode(torch.fx.Interpreter):
        def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
            return arguments[str(target).lstrip("*")]

        def run_node(self, node: Node) -> Any:
            value = super().run_node(node)
            known = recorded.get(node.name)
            if isinstance(value, Tensor) and known is not None and not wrong:
                difference_here = difference({"the value": known}, {"the value": value})
                if difference_here is not None:
                    wrong.append(f"the first node that differs is `{node.format_node()}` ({note_of(node).source})")
            return value

    seed()
    arguments = inputs.copied().arguments
    picked = module.graph if training or module.eval_graph is None else module.eval_graph
    try:
        NodeByNode(module, graph=picked).run()
    except Exception as error:  # the difference may be a crash: report it as one
        wrong.append(f"running the graph node by node fails with {type(error).__name__}: {error}")
    return wrong[0] if wrong else "every forward value agrees, the backward does not"
