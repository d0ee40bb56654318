"""The training steps that are compared: the float model's, and each preset's."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import to_torch_csr_tensor

from dqconvert.bench.case import Subject
from dqconvert.errors import CommandError, DQConvertError
from dqconvert.prepare import prepare
from dqconvert.trace.inputs import Inputs, bind, map_tensors
from dqconvert.words import kind_of, raised

FORMS = ("fused", "unfused")
"""The ways to prepare a preset."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One training step among those compared.

    Attributes:
        name: What the results call it.
        preset: What to prepare the model with; ``None``: the float model.
        fuse: If true, fused kernels may be used.
        csr: If true, the connectivity is a sparse matrix instead of an ``edge_index``.
    """

    name: str
    preset: str | None = None
    fuse: bool = True
    csr: bool = False


FLOAT = Variant(name="float, edge_index")
CSR = Variant(name="float, CSR", csr=True)


def variants_of(presets: Sequence[str], forms: Sequence[str] = ("fused",)) -> tuple[Variant, ...]:
    """Returns the presets in each of the forms.

    Example:
        >>> [variant.name for variant in variants_of(["int8-dq"], ["fused", "unfused"])]
        ['int8-dq', 'int8-dq, unfused']
    """
    return tuple(
        Variant(name=preset if form == "fused" else f"{preset}, {form}", preset=preset, fuse=form == "fused")
        for preset in presets
        for form in forms
    )


class Step:
    """A training step that can be repeated: zero_grad, forward, loss, backward, Adam.

    Args:
        module: What to train; in training mode from here on.
        target: As in :class:`Subject`.
    """

    def __init__(self, module: nn.Module, inputs: Inputs, target: Tensor | None) -> None:
        self.module = module.train()
        self.target = target
        self.take(inputs)
        self._optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def take(self, inputs: Inputs) -> None:
        """Has the next steps train on these."""
        self.inputs = inputs
        self._args, self._kwargs = inputs.call()

    def __call__(self) -> Tensor:
        """Takes one step; returns the loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(_one_tensor(self.module(*self._args, **self._kwargs)))
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _loss(self, out: Tensor) -> Tensor:
        return out.float().pow(2).mean() if self.target is None else F.cross_entropy(out, self.target)

    def copy(self) -> Step:
        """Returns the step on copies of the module and of its inputs: nothing is shared."""
        inputs = self.inputs.map(torch.Tensor.clone)
        return Step(copy.deepcopy(self.module), inputs, map_tensors(self.target, torch.Tensor.clone))


def step_of(variant: Variant, subject: Subject) -> Step:
    """Returns the variant's training step; the subject's model stays as it is.

    Raises:
        DQConvertError: If the model cannot be prepared, or does not take a CSR adjacency.
    """
    if variant.preset is not None:
        module = prepare(subject.model, variant.preset, subject.example, fuse=variant.fuse).module
        return Step(module, subject.inputs, subject.target)
    inputs = subject.inputs
    if variant.csr:
        if (reason := why_not_csr(subject)) is not None:
            raise CommandError(reason)
        inputs = with_csr(inputs)
    return Step(copy.deepcopy(subject.model), inputs, subject.target)


def timed_step_of(variant: Variant, subject: Subject) -> tuple[Step, float]:
    """Returns :func:`step_of`'s step, and how many seconds it took."""
    start = time.perf_counter()
    step = step_of(variant, subject)
    return step, time.perf_counter() - start


def why_not_csr(subject: Subject) -> str | None:
    """Tries a CSR adjacency on the float model, forward and backward, and compares.

    Returns:
        Why the model does not take one; ``None``: it does.
    """
    if subject.edge_index is None:
        return "forward has no argument edge_index of shape [2, E]"
    if any(subject.inputs.arguments.get(name) is not None for name in ("edge_weight", "edge_attr")):
        return "it has edge weights or features as an argument of their own"
    model = copy.deepcopy(subject.model).eval()
    example = bind(model, "forward", subject.example)
    try:
        expected, found = (_output(model, inputs) for inputs in (example, with_csr(example)))
        found.float().sum().backward()
    except DQConvertError:
        raise
    except Exception as error:  # whatever layers raise on a connectivity that they were not made for
        return raised(error)
    difference = float((expected - found).detach().abs().max())
    if difference > 1e-3 * float(expected.detach().abs().max()):
        return f"it gives other results (by {difference:.2g}): parallel edges count once in a CSR adjacency"
    return None


def _output(model: nn.Module, inputs: Inputs) -> Tensor:
    args, kwargs = inputs.call()
    return _one_tensor(model(*args, **kwargs))


def _one_tensor(out: Any) -> Tensor:
    if not isinstance(out, Tensor):
        raise CommandError(f"--model: its forward returns {kind_of(out)}: wrap it to return one tensor.")
    return out


def with_csr(inputs: Inputs) -> Inputs:
    """Returns the inputs with the ``edge_index`` as a transposed sparse matrix, as PyG wants it."""
    edge_index, x = inputs.arguments["edge_index"], inputs.arguments.get("x")
    num_nodes = x.size(0) if isinstance(x, Tensor) else int(edge_index.max()) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that its sparse matrices are in beta
        adjacency = to_torch_csr_tensor(edge_index.flip(0), size=(num_nodes, num_nodes))
    return Inputs(inputs.signature, {**inputs.arguments, "edge_index": adjacency}, inputs.given)
