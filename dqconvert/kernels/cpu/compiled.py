"""Compiles loops, and keeps their machine code on disk: only for as long as it is that of the sources.

numba's own cache knows a loop by the file that it is written in. A loop is compiled together with those that it calls,
and when these lie in another file that changes, numba goes on with the machine code of before: after an edit, or a
`git pull` under an editable install. Here the folder of a file's loops is named after a hash of that file, of all
files of this package that it imports, of numba's and llvmlite's versions and of the processor.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import pickle
import platform
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import binding
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from dqconvert.kernels.cpu import cache_folder as folders

_PACKAGE = __name__.partition(".")[0]

_IMPORT = re.compile(r"^[ \t]*((?:from|import)\b[^\n(]*(?:\([^)]*\))?)", re.MULTILINE)
"""A statement that imports, or a line of prose that begins like one."""

_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "CPU_NAME", "CPU_FEATURES")
"""What numba reads from the environment that makes other machine code of the same sources."""


def loop(function: Callable[..., Any] | None = None, *, fastmath: set[str] | bool = False) -> Any:
    """Compiles a loop: without the interpreter lock, kept on disk, and dividing as floating point does (x/0 = inf).

    Args:
        function: The loop, where it is decorated without brackets.
        fastmath: What the compiler may assume of floating point, in LLVM's words.
    """
    if function is None:
        return functools.partial(loop, fastmath=fastmath)
    compiled = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
    if not config.DISABLE_JIT and getattr(sys.modules.get(function.__module__), "__spec__", None) is not None:
        compiled._cache = LoopCache(function)  # as its `enable_caching` does, with a cache of numba's own
    return compiled


class LoopCache(_Cache):
    """The machine code of one loop: a file for each signature, in the folder of the loop's module.

    A file goes where it belongs in one step and names what it was compiled for, so processes that compile the same
    loops at the same time don't disturb each other. One that is damaged is compiled anew.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        self._name = f"{function.__qualname__}-{code.co_firstlineno}".replace("<", "").replace(">", "")
        self._bytecode = hashlib.sha256(code.co_code).hexdigest()
        # Now, as the file has just been read: later it may be another.
        sources = _sources(function.__module__)
        self._folder = f"{function.__module__.removeprefix(_PACKAGE + '.')}-"
        self._sources = sources
        self._enabled = True

    @property
    def folder(self) -> str:
        """Returns the name of the folder."""
        settings = [repr(getattr(config, name, None)) for name in _SETTINGS]
        known = repr((self._sources, _machine(), settings))
        return self._folder + hashlib.sha256(known.encode()).hexdigest()[:24]

    @property
    def cache_path(self) -> str | None:
        place = folders.place()
        return None if place is None else str(place / self.folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the compiled loop, or None where there is none to be had."""
        if not self._enabled:
            return None
        target_context.refresh()  # as numba's own does
        key = self._key(sig, target_context.codegen())
        for data in folders.read(self.folder, self._file(key)):
            known, parts = pickle.loads(data)
            if known == key:
                return CompileResult._rebuild(target_context, *parts)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a compiled loop, if it can be kept: one that refers to this process cannot."""
        if self._enabled and not data.library.has_dynamic_globals:
            key = self._key(sig, data.codegen)
            folders.write(self.folder, self._file(key), dumps((key, data._reduce())))

    def _key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple(), self._bytecode

    def _file(self, key: Any) -> str:
        return f"{self._name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}{folders.SUFFIX}"

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        folders.empty(self.folder)


@functools.cache
def _machine() -> tuple[Any, ...]:
    """Returns the versions of what compiles, and the processor."""
    return (
        (
            numba.__version__,
            llvmlite.__version__,
            np.__version__,
            *platform.python_build(),
            sys.implementation.cache_tag,
        ),
        (binding.get_default_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()),
    )


_read: dict[str, tuple[ModuleSpec | None, str, frozenset[str]]] = {}
"""Of modules: the specification that they were imported by, a hash of their source, and what they import."""


def _sources(module: str) -> list[tuple[str, str]]:
    """Returns the names and hashes of a module and of all modules of this package that it imports, and so on."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            _, found[name], imported = _module(name)
            waiting.extend(imported)
    return sorted(found.items())


def _module(name: str) -> tuple[ModuleSpec | None, str, frozenset[str]]:
    """Returns specification, hash and imports of a module: read once for each import (a reload gives it a new spec).

    What was changed since then isn't what this process computes with.
    """
    imported = sys.modules.get(name)
    spec = None if imported is None else imported.__spec__
    known = _read.get(name)
    if known is None or known[0] is not spec:
        found = spec or importlib.util.find_spec(name)
        source = _source(found)
        text = source.decode("utf-8", "replace")
        _read[name] = known = (spec, hashlib.sha256(source).hexdigest(), frozenset(_imports(found, text)))
    return known


def _source(spec: ModuleSpec | None) -> bytes:
    """Returns the text of a module, also of one in an archive."""
    assert spec is not None
    assert spec.origin is not None
    get_data = getattr(spec.loader, "get_data", None)
    return Path(spec.origin).read_bytes() if get_data is None else bytes(get_data(spec.origin))


def _imports(spec: ModuleSpec | None, text: str) -> Iterator[str]:
    """Returns the modules of this package that a module imports."""
    assert spec is not None
    for node in _statements(text):
        yield from (name for name in _imported(node, spec.parent) if _is_ours(name))


def _statements(text: str) -> list[ast.AST]:
    """Those that import, found by how they begin: to parse whole files takes twenty times as long."""
    found: list[ast.AST] = []
    for statement in _IMPORT.findall(text):
        try:
            found.extend(ast.parse(statement).body)
        except SyntaxError:
            if "import" in statement:  # not prose: it ends elsewhere
                return list(ast.walk(ast.parse(text)))
    return found


def _imported(node: ast.AST, parent: str | None) -> list[str]:
    """Returns the modules that a statement imports, those of other packages among them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    outer = importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
    inner = [f"{outer}.{alias.name}" for alias in node.names]
    modules = [name for name in inner if _is_ours(name) and _is_module(name)]
    return modules if len(modules) == len(inner) else [outer, *modules]


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def _is_module(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of something in a module that is no package
        return False
