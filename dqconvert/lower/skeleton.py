"""The user's model inside an integer module: its parts, and code that has no graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dqconvert.prepared import PreparedModule
from dqconvert.prepared.base import quantized_parameters
from dqconvert.prepared.float_view import float_view
from dqconvert.trace.copies import set_mode
from dqconvert.trace.doors import DoorModule
from dqconvert.trace.leaves import WEIGHTED_MODULES
from dqconvert.trace.parts import Part, door_of, part_class

_DROPPED = "_dqconvert_dropped"


def skeleton_of(module: PreparedModule) -> nn.Module:
    """Returns a copy of the user's model without the weights that have quantizers: no method multiplies by them.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> from dqconvert import prepare
        >>> [name for name, _ in skeleton_of(prepare(GCN(8, 16, num_layers=2)).module).named_parameters()]
        ['convs.0.bias', 'convs.1.bias']
    """
    quantized = quantized_parameters(module)
    view = set_mode(float_view(module), False)
    for parameter in nn.Module.parameters(view):  # a model may have a method of that name for something else
        if not is_lazy(parameter):
            parameter.requires_grad_(False)
    for path, part in view.named_modules():
        for name in list(part._parameters):
            if isinstance(part, WEIGHTED_MODULES) or (f"{path}.{name}" if path else name) in quantized:
                del part._parameters[name]
                vars(part)[_DROPPED] = True
    return view


def lacks_weights(found: Any) -> bool:
    """Returns True if an object is a part of a skeleton without the weights of its own."""
    return isinstance(found, nn.Module) and _DROPPED in vars(found)


class Bare(nn.Module):
    """A part of an integer module, which the user's class is not known of: it has the methods that have graphs, and
    parts of its own, by name or number."""

    def __getitem__(self, key: Any) -> Any:
        known = self._modules.get(str(key))
        return known if known is not None else self._of_skeleton("__getitem__")(key)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.children())

    def __len__(self) -> int:
        return len(self._modules)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
        return self._of_skeleton(name)

    def _of_skeleton(self, name: str) -> Any:
        host, path = getattr(type(self), "_host", None), getattr(type(self), "_path", "")
        skeleton = None if host is None else vars(host).get("skeleton")
        if skeleton is not None:
            return getattr(skeleton.get_submodule(path), name)
        raise AttributeError(
            f"the part {path!r} of the integer module has no {name!r}: call it once on the prepared module before "
            f"convert, or name it in prepare's method=."
        )


def open_bare(host: DoorModule, doors: Iterable[str]) -> None:
    """Gives an integer module the parts that doors are of."""
    methods: dict[str, list[str]] = {}
    for door in doors:
        path, _, name = door.rpartition(".")
        methods.setdefault(path, []).append(name)
        owner: nn.Module = host
        for step in path.split("."):
            if step not in owner._modules:
                owner._modules[step] = nn.Module().eval()
            owner = owner._modules[step]  # type: ignore[assignment]
    for path, part in list(host.named_modules()):
        if part is not host and (type(part) is nn.Module or isinstance(part, Bare)):
            part.__class__ = _bare_class(host, path, methods.get(path, []))


def _bare_class(host: DoorModule, path: str, names: list[str]) -> type[nn.Module]:
    body: dict[str, Any] = {name: door_of(f"{path}.{name}", host) for name in dict.fromkeys(("forward", *names))}
    return type("Part", (Part, Bare), {**body, "_user_class": Bare, "_host": host, "_path": path})


def guard_parts(
    host: DoorModule, trees: Iterable[nn.Module], settings: Iterable[str], refuse: Callable[[str], None]
) -> None:
    """Lets parts refuse, as the integer module itself does, to set what the float model's forward read.

    Args:
        trees: It and its skeleton. Modules of the integer module that compute in float read their attributes
            themselves, and stay as they are.
        settings: What the forward read, by path.
        refuse: Raises an error if what has a path is one of them.
    """
    owners = {""}
    for setting in settings:
        owners.update(accumulate(setting.split(".")[:-1], "{}.{}".format))
    for tree in trees:
        parts = dict(tree.named_modules(remove_duplicate=False))
        for path in owners & parts.keys():
            part = parts[path]
            if tree is not host and not isinstance(part, Part | DoorModule | torch.jit.ScriptModule):
                part.__class__ = part_class(type(part), host, path, part)
            if isinstance(part, Part):
                cls: Any = type(part)  # of this part alone
                cls.__setattr__ = _refusing(f"{path}." if path else "", refuse)


def _refusing(prefix: str, refuse: Callable[[str], None]) -> Callable[[Any, str, Any], None]:
    def set_attribute(self: Any, name: str, value: Any) -> None:
        refuse(prefix + name)
        super(Part, self).__setattr__(name, value)

    return set_attribute
