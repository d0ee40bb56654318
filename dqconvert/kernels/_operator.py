"""Operators: registered with torch for those that look at operators, called directly where nobody looks.

torch.compile, torch.export, profilers and dispatch modes look at operators. A registered operator written in Python
costs about a tenth of a millisecond a call, which is more than many of ours take, so otherwise it is passed by.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from dqconvert.errors import ExportError, InputTypeError
from dqconvert.kernels._takes import ORDINARY, Takes

DEFINITIONS: dict[str, Callable[..., Any]] = {}
"""By the name of each operator, its definition, which takes the operator's own arguments."""


class Operator:
    """A function of tensors and numbers, known to torch by a name.

    Args:
        name: What torch calls it, behind ``dqconvert::``.
        definition: What every implementation is held to; its annotations are the operator's schema. It returns tensors
            of its own, never its arguments or parts of them. Where it takes a ``NamedTuple``, the registered operator
            and ``takes`` have an argument for each field, named as ``takes`` says, and ``None`` for each where there is
            none; all other functions here are given the ``NamedTuple``, and ``backward`` returns one of gradients.
        fake: The same, of shapes and types alone.
        cpu: The loops of the CPU, if it has any.
        takes: What those rely on; nothing else reaches them. Required with ``cpu``.
        serves: True if the loops do it for arguments of these types, shapes and flags; if not, the definition does.
            ``None``: always.
        check: Raises what users are told of arguments that do not fit, on every device; it looks at types, shapes,
            sizes and flags.
        setup: As :meth:`torch.library.CustomOpDef.register_autograd` takes it.
        backward: Likewise.
        random: True if it draws random numbers.
    """

    def __init__(
        self,
        name: str,
        definition: Callable[..., Any],
        *,
        fake: Callable[..., Any],
        cpu: Callable[..., Any] | None = None,
        takes: Takes | None = None,
        serves: Callable[..., bool] | None = None,
        check: Callable[..., None] | None = None,
        setup: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        random: bool = False,
    ) -> None:
        # Equal calls of what draws random numbers must neither be merged nor run again in a backward pass.
        tags = (torch.Tag.nondeterministic_seeded,) if random else ()
        signature, self._groups = _flattened(definition, None if takes is None else takes.names)

        def flat(function: Callable[..., Any]) -> Callable[..., Any]:
            if not self._groups:
                return function
            return _with_signature(lambda *args: function(*self._grouped(args)), function, signature)

        self.definition, DEFINITIONS[name] = definition, flat(definition)
        self.registered = torch.library.custom_op(f"dqconvert::{name}", flat(definition), mutates_args=(), tags=tags)

        @wraps(fake)
        def sizes(*args: Any, **kwargs: Any) -> Any:
            _refuse_ahead_of_time()
            return fake(*args, **kwargs)

        self.registered.register_fake(flat(sizes))
        self._direct: Callable[..., Any] = lambda args, given: definition(*given)
        self._loops: Callable[..., Any] | None = None
        self._apply, self._check = None, check
        if cpu is not None:
            if takes is None or list(takes.names) != list(signature.parameters):
                raise TypeError(f"operator {name!r} has loops: what they take must be said of each of its arguments")
            gate, loops = takes, cpu

            def behind_gate(args: tuple[Any, ...], given: Sequence[Any]) -> Any:
                if serves is not None and not serves(*given):
                    return definition(*given)
                gate(args)
                return loops(*given)

            self._direct = behind_gate
            defaults = tuple(parameter.default for parameter in signature.parameters.values())

            def kernel(*args: Any) -> Any:
                args = (*args, *defaults[len(args) :])  # torch leaves out what is the default, as in exported programs
                return behind_gate(args, self._grouped(args))

            self.registered.register_kernel("cpu")(_with_signature(kernel, definition, signature))
            if backward is None:
                self._loops, self._knows = cpu, takes.knows
        if backward is not None and setup is not None:
            prepare, back = setup, backward

            def flat_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                prepare(ctx, self._grouped(inputs), output)

            def flat_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
                return self._flat(back(ctx, *grads))

            self.registered.register_autograd(flat_backward, setup_context=flat_setup)
            self._apply = self._function(name, prepare, flat_backward).apply

    def __call__(self, *args: Any) -> Any:
        # Most calls: arguments of a form that was checked before, which the loops serve.
        given, args = args, self._flat(args)
        if self._loops is not None and not _somebody_looks() and self._knows(args):
            return self._loops(*given)
        if self._check is not None:
            self._check(*given)
        if nobody_looks(args):
            return self._direct(args, given) if self._apply is None else self._apply(*args)
        _check_devices(self.registered._name, args)
        return self.registered(*args)

    def _flat(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns an argument for each field of NamedTuples."""
        if not self._groups:
            return args
        flat = list(args)
        for _, place, start, stop, _ in self._groups:
            flat[place : place + 1] = args[place] or (None,) * (stop - start)
        return tuple(flat)

    def _grouped(self, flat: tuple[Any, ...]) -> Sequence[Any]:
        """Reverses :meth:`_flat`."""
        if not self._groups:
            return flat
        args = list(flat)
        for kind, _, start, stop, optional in self._groups:
            part = args[start:stop]
            args[start:stop] = (None if optional and part[0] is None else tuple.__new__(kind, part),)
        return args

    def _function(self, name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> Any:
        """Returns the operator as a function with a gradient that is not registered."""

        def run(ctx: Any, *args: Any) -> Any:
            given = self._grouped(args)
            output = self._direct(args, given)
            setup(ctx, given, output)
            return output

        def back(ctx: Any, *grads: Any) -> Any:
            # Of a list an operator wants a list of gradients, a function none.
            return tuple([None if type(grad) is list else grad for grad in backward(ctx, *grads)])

        return type(f"Direct_{name}", (_Direct,), {"forward": staticmethod(run), "backward": staticmethod(back)})


class _Direct(torch.autograd.Function):
    """A function of ordinary tensors."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Does what ``Function.apply`` does, which looks three times at each argument."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        args = tuple([torch._C._functorch.unwrap_if_dead(one) if type(one) is Tensor else one for one in args])
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


def _with_signature(function: Callable[..., Any], like: Callable[..., Any], signature: inspect.Signature) -> Any:
    """Returns the function under the name of another one, for torch to read its schema off."""
    run: Any = wraps(like)(function)
    run.__signature__ = signature
    return run


class _Group(NamedTuple):
    """An argument that is a NamedTuple.

    Attributes:
        kind: Its class.
        place: Its place among the arguments.
        start, stop: Those of its fields among the flat arguments.
        optional: True if it may be None; then its first field never is.
    """

    kind: type
    place: int
    start: int
    stop: int
    optional: bool


def _flattened(definition: Callable[..., Any], names: tuple[str, ...] | None) -> tuple[inspect.Signature, list[_Group]]:
    """Returns a signature with an argument for each field of NamedTuples, and which arguments those are, from the last
    one on."""
    signature, hints = inspect.signature(definition), get_type_hints(definition)
    parameters: list[inspect.Parameter] = []
    groups: list[_Group] = []
    for place, parameter in enumerate(signature.parameters.values()):
        hint = hints[parameter.name]
        kind = next((one for one in (hint, *get_args(hint)) if hasattr(one, "_fields")), None)
        if kind is None:
            parameters.append(parameter.replace(annotation=hint))
            continue
        fields = get_type_hints(kind)
        groups.insert(0, _Group(kind, place, len(parameters), len(parameters) + len(fields), kind is not hint))
        for name, field in fields.items():
            annotation = field if kind is hint else field | None
            parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation))
    signature = signature.replace(return_annotation=hints.get("return", signature.return_annotation))
    if not groups or names is None or len(names) != len(parameters):
        return signature, groups
    named = [parameter.replace(name=name) for parameter, name in zip(parameters, names, strict=True)]
    return signature.replace(parameters=named), groups


def _refuse_ahead_of_time() -> None:
    """Raises if AOTInductor compiles: its constants are written into memory that is used again, without torch counting
    it as a change, and operators go by what they derived from it before."""
    inductor = sys.modules.get("torch._inductor.virtualized")
    if inductor is not None and getattr(inductor.V.graph, "aot_mode", False):
        raise ExportError(
            "AOTInductor cannot compile dqconvert's operators: constants it puts into memory that is used again would "
            "be taken for those before. Run the program as it is (torch.export.load(path).module()), or compile that "
            "of the prepared module, which has no operators of dqconvert."
        )


def _check_devices(name: str, args: tuple[Any, ...]) -> None:
    """Raises unless all tensors lie on one device, but for single numbers: what lies on another is not read at all by
    operators of tensors without values (``meta``)."""
    if torch.compiler.is_compiling():
        return
    parts = [part for arg in args for part in (arg if isinstance(arg, list | tuple) else (arg,))]
    devices = {part.device: part for part in parts if isinstance(part, Tensor) and part.dim() > 0}
    if len(devices) > 1:
        raise InputTypeError(f"{name}: all tensors must lie on one device, got {', '.join(map(str, devices))}")


def _somebody_looks() -> bool:
    """Returns True while a compiler, a profiler or a dispatch mode wants to see operators."""
    looks = torch.compiler.is_compiling() or torch._C._autograd._profiler_enabled()
    return bool(looks or torch._C._len_torch_dispatch_stack())


def nobody_looks(args: tuple[Any, ...]) -> bool:
    """Returns True in eager execution on the CPU, of ordinary tensors; those in lists come with one that is not."""
    if _somebody_looks():
        return False
    for t in args:
        kind = type(t)
        if kind in ORDINARY:
            if not t.is_cpu:
                return False
        elif kind not in _PLAIN and isinstance(t, Tensor):
            return False
    return True


_PLAIN = frozenset((type(None), bool, int, float, str, list, tuple))
"""Types of arguments that are no tensors for sure."""
