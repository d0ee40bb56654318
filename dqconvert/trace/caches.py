"""Attributes that forwards set once and read ever after: what they compute in the first forward and keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dqconvert.trace.copies import deepcopy, set_mode
from dqconvert.trace.inputs import Inputs, method_of
from dqconvert.trace.patching import patched
from dqconvert.trace.unchanged import Read


def set_once(root: nn.Module, inputs: Inputs, method: str) -> set[Read]:
    """Returns the attributes that the first of two forwards in evaluation sets, and the second does not."""
    model = set_mode(deepcopy(root), False)
    paths = {id(module): path for path, module in nn.Module.named_modules(model)}
    found: list[set[Read]] = [set(), set()]
    usual = nn.Module.__setattr__
    args, kwargs = inputs.call()

    def run(into: set[Read]) -> None:
        def watch(module: nn.Module, name: str, value: Any) -> None:
            if id(module) in paths:
                into.add((paths[id(module)], (("attr", name),)))
            usual(module, name, value)

        with patched([(nn.Module, "__setattr__", watch)]), torch.no_grad():
            method_of(model, method)(*args, **kwargs)

    for names in found:
        run(names)
    return found[0] - found[1]
