"""The functions that a graph in a file may call, by name: the allow-list.

A file names functions by strings. A name is looked up here and nowhere else, and nothing is imported for it.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import get_overridable_functions, resolve_name

from dqconvert.checkpoint.checked import CHECKED
from dqconvert.ops import OPS, Op
from dqconvert.trace.leaves import leaf_functions
from dqconvert.trace.values import MATH_NAMES

Function = Callable[..., Any]

_OURS: Mapping[Function, Op] = MappingProxyType(
    {getattr(importlib.import_module(op.where), op.name): op for op in OPS if op.where}
)
"""What the graphs of this package call besides torch and PyG, and the record of each."""

INTEGER_ONLY: tuple[Function, ...] = tuple(function for function, op in _OURS.items() if op.integer)
"""What integer graphs call, and no other: their operands are looked at when a file is loaded."""

_BUILTINS = ("getattr", "min", "max", "round", "int", "float", "abs", "len")

# Functions that make tensors, and so are not overridable by their arguments.
_MAKERS = (
    "arange as_tensor empty empty_like eye fill full full_like linspace logspace normal ones ones_like rand "
    "rand_like randint randint_like randn randn_like randperm range scalar_tensor "
    "tensor tril_indices triu_indices vander zeros zeros_like hann_window hamming_window bartlett_window "
    "blackman_window kaiser_window"
)

# What torch lets one see, and has not on its list of that.
_UNLISTED = "hardsigmoid hardswish"

# What some of torch's functions call instead of themselves.
_PARTS = (
    "_sparse_sum _softmax _log_softmax _C._nn.pad_sequence _C._sparse._sparse_mm _C._sparse._sparse_addmm "
    "_C._sparse._sparse_softmax _C._sparse._sparse_log_softmax _C._sparse.sparse_sampled_addmm"
)

_UNSAFE = re.compile(
    r"torch\.(?!_C\._set_grad_enabled$)(\w+\.)*(_\w+|(fbgemm|mkldnn|cudnn|miopen|quantized|quantize|fused|native)_\w+|\w*as_strided\w*|segment_reduce"
    r"|sparse_\w+_tensor|batch_norm_\w+|(rnn_tanh|rnn_relu|lstm|gru)(_cell)?|from_\w+|dequantize|ctc_loss|\w*set_\w*|resize\w*)"
)
"""Functions that believe what they are told of memory, or are the insides of others, which look first."""

_NOT_FROM_FILES = re.compile(r"torch_geometric\.utils\.(nested|ppr|convert)\.\w+")
"""Functions of PyG that leave torch, or call what does not look."""

# Methods of a tensor that run given code or reach past its values: no model's arithmetic needs them.
_NO_METHODS = {
    *("as_strided", "as_strided_", "as_strided_scatter", "resize_as_sparse_", "sparse_resize_", "record_stream"),
    *("sparse_resize_and_clear_", "const_data_ptr", "module_load", "retain_grad", "to_mkldnn", "storage_offset"),
    *("apply_", "map_", "map2_", "register_hook", "register_post_accumulate_grad_hook", "backward"),
    *("set_", "resize_", "resize_as_", "share_memory_", "storage", "untyped_storage", "data_ptr", "numpy"),
}
_MORE_METHODS = {
    *("item", "size", "numel", "to", "type", "type_as", "stride", "unflatten", "to_padded_tensor", "to_sparse_coo"),
    *("to_sparse_csr", "to_sparse_csc", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"),
    "__reversed__",
}
_ARITHMETIC = (
    "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift",
    "neg pos abs invert eq ne lt le gt ge getitem setitem contains",
)


def _tables() -> Iterator[tuple[str, Function]]:
    for space, functions in get_overridable_functions().items():
        for function in functions:
            name = resolve_name(function)
            if name is not None and space is not Tensor and not name.startswith("torch.Tensor."):
                yield name, function
    for name in _MAKERS.split():
        yield f"torch.{name}", getattr(torch, name)
    for name in _UNLISTED.split():
        yield f"torch.nn.functional.{name}", getattr(torch.nn.functional, name)
    for name in (op.operator for op in OPS if op.operator):
        yield f"operator.{name}", getattr(operator, name)
    for name in _BUILTINS:
        yield f"builtins.{name}", getattr(builtins, name)
    for name in (*MATH_NAMES, "trunc", "floor", "ceil"):
        yield f"math.{name}", getattr(math, name)
    yield "torch._C._set_grad_enabled", torch._C._set_grad_enabled
    for function in leaf_functions():
        yield f"{function.__module__}.{function.__qualname__}", function
    for function, op in _OURS.items():
        yield op.name_in_files, function


@functools.cache
def allowed_functions() -> dict[str, Function]:
    """Returns every function that a graph in a file may call, by the name it has there."""
    found: dict[str, Function] = {}
    for name, function in _tables():
        if not _UNSAFE.fullmatch(name) and not _NOT_FROM_FILES.fullmatch(name):
            found.setdefault(name, function)
    found |= {f"torch.{name}": attrgetter(name)(torch) for name in _PARTS.split()}
    found |= dict.fromkeys(("torch.mm", "torch.spmm", "torch.dsmm"), torch.mm)  # which are equal: passes know it as mm
    return found | {name: checked for name, (_, checked) in CHECKED.items()}


@functools.cache
def _names() -> dict[Any, str]:
    found: dict[Any, str] = {torch.mm: "torch.mm"}
    for name, function in allowed_functions().items():
        found.setdefault(function, name)
    found |= {function: name for name, (function, _) in CHECKED.items()}
    for name in allowed_functions():  # PyG puts wrappers in the place of some of torch's functions
        wrapped = getattr(torch._C._VariableFunctions, name.removeprefix("torch."), None)
        if wrapped is not None:
            found.setdefault(wrapped, name)
    return found


def function_name(function: Function) -> str | None:
    """Returns the name of a function in files; None if files cannot hold it.

    Example:
        >>> function_name(torch.cat), function_name(operator.add), function_name(print)
        ('torch.cat', 'operator.add', None)
    """
    return _names().get(function)


@functools.cache
def allowed_methods() -> frozenset[str]:
    """Returns the methods of a tensor that a graph in a file may call.

    Example:
        >>> [name in allowed_methods() for name in ("view", "__rsub__", "apply_", "__reduce__")]
        [True, True, False, False]
    """
    names = [resolve_name(function) or "" for function in get_overridable_functions()[Tensor]]
    plain = {name.removeprefix("torch.Tensor.") for name in names if re.fullmatch(r"torch\.Tensor\.[a-z]\w*", name)}
    binary, others = _ARITHMETIC
    special = {f"__{side}{name}__" for name in binary.split() for side in ("", "r", "i")}
    special |= {f"__{name}__" for name in others.split()}
    return frozenset((plain - _NO_METHODS) | special | _MORE_METHODS)
