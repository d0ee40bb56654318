"""Operators of dqconvert, registered with torch when one is first asked for.

``torch.ops.dqconvert.integer_linear`` is what loading an exported program asks for, in a process that may have imported
dqconvert alone. That import loads no torch; what is here waits until somebody else does.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from typing import Any

_HOMES = ("dqconvert.kernels", "dqconvert.lower")
"""The rooms whose import registers all operators."""


class _Waiting(MetaPathFinder):
    """Finds no module: it is asked for each that is imported, and so learns when torch has come."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if _has_torch():
            sys.meta_path.remove(self)
            _install()


def register_on_demand() -> None:
    """Lets ``torch.ops.dqconvert`` register operators when one is asked for, now or once torch is imported."""
    if _has_torch():
        _install()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _has_torch() -> bool:
    return hasattr(sys.modules.get("torch._ops"), "ops")


def _importing() -> bool:
    """True while a module of ours is being imported."""
    ours = [module for name, module in sys.modules.items() if name.startswith("dqconvert.")]
    return any(getattr(module.__spec__, "_initializing", False) for module in ours)


def _install() -> None:
    torch_ops: Any = sys.modules["torch._ops"]

    class Operators(torch_ops._OpNamespace):
        """The namespace ``torch.ops.dqconvert``."""

        __module__ = torch_ops._OpNamespace.__module__  # files name operators by it

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("__") or _importing():  # whoever registers an operator asks whether it is there
                    raise
            for home in _HOMES:
                importlib.import_module(home)
            return super().__getattr__(name)

    if "dqconvert" not in vars(torch_ops.ops):
        torch_ops.ops.dqconvert = Operators("dqconvert")
