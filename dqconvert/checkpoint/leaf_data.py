"""A module that a graph keeps whole, as JSON-ready data and back: its class, its plain attributes, its children.

Only classes of torch and PyG that are listed here are ever made, without calling their constructors, and only plain
values, tensors of the file and functions of the allow-list become attributes.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch_geometric.nn import aggr, norm
from torch_geometric.nn.aggr.fused import FusedAggregation

from dqconvert.checkpoint.functions import allowed_functions, function_name
from dqconvert.errors import CheckpointError
from dqconvert.rewrite.place import Quantizers
from dqconvert.words import kind_of

Data = dict[str, Any]

_MORE = (
    torch_geometric.nn.Linear,
    torch_geometric.nn.HeteroLinear,
    torch_geometric.nn.HeteroDictLinear,
    FusedAggregation,
    nn.modules.linear.NonDynamicallyQuantizableLinear,  # in nn.MultiheadAttention
)

_STATE = frozenset(vars(nn.Module()))
"""What every module has: hooks among it, which a file does not hold."""


@functools.cache
def allowed_modules() -> dict[str, type[nn.Module]]:
    """Returns the classes of modules that a file may name: layers of torch, PyG's aggregations, norms, linear layers.

    Example:
        >>> allowed_modules()["torch.nn.modules.normalization.LayerNorm"]
        <class 'torch.nn.modules.normalization.LayerNorm'>
    """
    spaces = [vars(torch.nn), vars(aggr), vars(norm)]
    classes = [*_MORE, *(value for space in spaces for value in space.values() if inspect.isclass(value))]
    return {_name(cls): cls for cls in classes if issubclass(cls, nn.Module)}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def encode_module(module: nn.Module, path: str) -> Data:
    """Returns the data that a file holds of a module; its tensors are stored under their names.

    Args:
        module: A leaf of a graph.

    Raises:
        CheckpointError: If it, or one inside of it, is of no class that a file may name, or holds something else than
            tensors and plain values.
    """
    name = _name(type(module))
    if name not in allowed_modules():
        raise CheckpointError(
            f"{path} is {kind_of(module)}, computed as it is, which a file cannot hold: only layers of "
            f"torch.nn and PyG's aggregations and norms load without the model's code. Pickle the integer module "
            f"instead, or rewrite that part so that it is traced."
        )
    tensors = {*module._parameters, *module._buffers}
    kept = {key: value for key, value in vars(module).items() if key not in _STATE and not _is_derived(key, value)}
    children = {key: child for key, child in module._modules.items() if not isinstance(child, Quantizers)}
    return {
        "class": name,
        "attributes": {key: _encode(value, f"{path}.{key}") for key, value in kept.items()},
        "parameters": [key for key, value in module._parameters.items() if value is not None],
        "buffers": [key for key, value in module._buffers.items() if value is not None],
        "absent": sorted(key for key in tensors if getattr(module, key) is None),
        "children": {
            key: encode_module(child, f"{path}.{key}") for key, child in children.items() if child is not None
        },
        "empty": [key for key, child in children.items() if child is None],
    }


def _is_derived(key: str, value: Any) -> bool:
    """True if an attribute is a list of parameters, which recurrent layers keep beside the parameters themselves."""
    return key in ("_flat_weights", "_flat_weight_refs") and isinstance(value, list)


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [_encode(item, where) for item in value]}
    if isinstance(value, list):
        return [_encode(item, where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(item, where) for key, item in value.items()}}
    if callable(value) and (name := function_name(value)) is not None:
        return {"function": name}
    raise CheckpointError(
        f"{where} is {kind_of(value)}, which a file cannot hold. Pickle the integer module instead, or keep "
        f"plain numbers and strings there."
    )


def decode_module(data: Mapping[str, Any], path: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Returns the module that :func:`encode_module` wrote.

    Args:
        path: Its path: its tensors are called ``path.name``.

    Raises:
        CheckpointError: If the file names a class, an attribute or a tensor that it may not.
    """
    cls = allowed_modules().get(data["class"])
    if cls is None:
        raise CheckpointError(f"the file holds a module of the class {data['class']!r}, which is not allowed.")
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    for key, value in data["attributes"].items():
        _check_name(cls, key)
        module.__dict__[key] = _decode(value)
    for key in data["parameters"]:
        module.register_parameter(_fresh(module, key), _parameter(tensors[f"{path}.{key}"]))
    for key in data["buffers"]:
        module.register_buffer(_fresh(module, key), tensors[f"{path}.{key}"])
    for key in data["absent"]:
        module.register_parameter(_fresh(module, key), None)
    for key, child in data["children"].items():
        module.add_module(_fresh(module, key), decode_module(child, f"{path}.{key}", tensors))
    for key in data["empty"]:
        module.add_module(_fresh(module, key), None)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
    return module.eval().requires_grad_(False)


def _check_name(cls: type[nn.Module], key: str) -> None:
    taken = key in _STATE or key.startswith("__") or callable(getattr(cls, key, None))
    if taken or not key.isidentifier():
        raise CheckpointError(f"the file sets {key!r} of a {cls.__name__}, which is not allowed.")


def _fresh(module: nn.Module, key: Any) -> str:
    if not isinstance(key, str) or hasattr(module, key) or "." in key or not key:
        raise CheckpointError(f"the file holds {key!r} in {kind_of(module)}, which has that name already.")
    return key


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    [(word, content)] = value.items()
    if word == "float":
        return float(content)
    if word == "tuple":
        return tuple(map(_decode, content))
    if word == "dict":
        return {str(key): _decode(item) for key, item in content.items()}
    if word == "function" and content in allowed_functions():
        return allowed_functions()[content]
    raise CheckpointError(f"the file holds {value!r} as an attribute, which is not allowed.")
