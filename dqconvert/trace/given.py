"""Turns inputs, in any form that users give, into the calls that they stand for.

One call's worth is a tensor, a tuple, list or dict of the forward's arguments, or a PyG data object; several are a list
of such, or anything that can be iterated: a ``DataLoader``, a data set, a generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.data import BaseData

from dqconvert.errors import DQConvertError
from dqconvert.trace.callee import PLAIN, STARS, Callee
from dqconvert.trace.nested import is_named, map_items
from dqconvert.words import did_you_mean, kind_of, listed

Bound: TypeAlias = inspect.BoundArguments


def calls_of(callee: Callee, data: Any) -> Iterator[Bound]:
    """Yields the calls that inputs stand for, without going further through an iterator than is asked for.

    Args:
        data: One call's worth of inputs, or several, some of which may be calls already. Of what a loader yields as
            ``(inputs, target)`` the target is left out.

    Raises:
        DQConvertError: Of the callee's kind, if they do not fit.

    Example:
        >>> import torch
        >>> from dqconvert.errors import ConfigError
        >>> from dqconvert.trace.callee import callee_of_method
        >>> def forward(x, edge_index): ...
        >>> callee = callee_of_method(forward, "GCN.forward", subject="the data does not fit", error=ConfigError)
        >>> x, edge_index = torch.ones(2, 1), torch.tensor([[0], [1]])
        >>> several = [Data(x=x, edge_index=edge_index), {"edge_index": edge_index, "x": x}, (x, edge_index)]
        >>> [list(bound.arguments) for bound in calls_of(callee, several)]
        [['x', 'edge_index'], ['x', 'edge_index'], ['x', 'edge_index']]
        >>> next(calls_of(callee, {"edge_idx": edge_index, "x": x}))
        Traceback (most recent call last):
            ...
        dqconvert.errors.ConfigError: the data does not fit GCN.forward(x, edge_index): it has no argument 'edge_idx';
        did you mean 'edge_index'? Pass a tuple or a dict of its arguments.
    """
    if isinstance(data, _NO_INPUTS) or inspect.isroutine(data):
        what = f"the class {data.__name__}" if isinstance(data, type) else kind_of(data)
        raise callee.refusal(f"got {what}", "pass tensors, a data object, or an iterable of such")
    if isinstance(data, list | tuple):
        data = settled(data)
    if is_single(callee, data):
        yield _call(callee, data, pair=True)
        return
    stored = isinstance(data, list | tuple) or hasattr(data, "__getitem__")
    items = data if isinstance(data, Iterable) else (data[index] for index in range(len(data)))
    for item in items:
        # A graph of a data set is a batch of one, as a loader would make it: with `batch`, `ptr` and `num_graphs`.
        yield _call(callee, item, pair=True, batched=stored)


_NO_INPUTS = (str, bytes, nn.Module, type, type(None))


def is_single(callee: Callee, data: Any) -> bool:
    """Returns True if inputs are one call's worth, False if several."""
    if isinstance(data, Tensor | BaseData | Mapping) or is_named(data):
        return True
    if not isinstance(data, list | tuple):
        return not isinstance(data, Iterable) and not (hasattr(data, "__getitem__") and hasattr(data, "__len__"))
    if not data:
        return isinstance(data, tuple)
    bound = _positional(callee, data)
    fits = bound is not None and (isinstance(data, tuple) or not callee.absent & set(bound.arguments))
    each = all(_fits(callee, item, pair=True) for item in data[:3])
    if isinstance(data, list) and fits and each and len(data) > 1 and all(isinstance(item, Tensor) for item in data):
        raise callee.refusal(
            "a list of tensors may be the arguments of one call, or one call each",
            "pass a tuple of arguments, or a list of tuples",
        )
    if fits or each:
        return fits and (isinstance(data, tuple) or not each)
    inputs = isinstance(data[0], BaseData | Mapping | tuple)
    return not (inputs if isinstance(data, list) else all(isinstance(item, BaseData | Mapping) for item in data))


def _fits(callee: Callee, item: Any, *, pair: bool = False) -> bool:
    try:
        _call(callee, item, pair=pair)
    except DQConvertError:
        return False
    return True


def _call(callee: Callee, item: Any, *, pair: bool = False, batched: bool = False) -> Bound:
    """Returns one call.

    Args:
        item: One call's worth of inputs.
        pair: Whether ``(inputs, target)`` will do, too.
        batched: Whether a graph is to become a batch of one, if the callee may want one.
    """
    if isinstance(item, inspect.BoundArguments):
        return item
    if isinstance(item, BaseData):
        return _of_data(callee, item, batched)
    item = settled(item)
    if isinstance(item, dict):
        return _of_dict(callee, item)
    if is_named(item) and set(item._fields) <= set(callee.signature.parameters):
        return _of_dict(callee, item._asdict())
    if isinstance(item, list) or (isinstance(item, tuple) and not is_named(item)):
        bound = _positional(callee, item)
        if bound is not None:
            return bound
        if pair and len(item) == 2 and _fits(callee, item[0]):
            return _call(callee, item[0], batched=batched)
        return _bound(callee, *item)
    if isinstance(item, _NO_INPUTS) or inspect.isroutine(item):
        raise callee.refusal(f"got {kind_of(item)} among its inputs")
    return _bound(callee, item)


def _positional(callee: Callee, items: Any) -> Bound | None:
    """Binds positional arguments; returns ``None`` if they cannot be meant."""
    try:
        bound = callee.signature.bind(*items)
    except TypeError:
        return None
    for name, value in bound.arguments.items():
        known = callee.tensors if isinstance(value, BaseData | tuple | list | dict) else callee.objects
        if name in known and (isinstance(value, Tensor) or known is callee.tensors):
            return None
    if items and isinstance(items[0], BaseData) and not _takes_object(callee, items[0]):
        return None
    return bound


def _bound(callee: Callee, *args: Any, **kwargs: Any) -> Bound:
    try:
        bound = callee.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise callee.refusal(f"{error}" + (f" ({len(args)})" if "too many" in str(error) else "")) from None
    for name in callee.objects & set(bound.arguments):
        if isinstance(bound.arguments[name], Tensor | dict | tuple | list | int | float):
            raise callee.refusal(
                f"{name!r} is a data object, got {kind_of(bound.arguments[name])}",
                "pass a Data, a Batch or a HeteroData",
            )
    return bound


def _collected(callee: Callee, item: dict[Any, Any]) -> Bound | None:
    """Binds a dict that names starred parameters: ``{"args": (…), "kwargs": {…}}``; else returns ``None``."""
    known = callee.signature.parameters
    stars = {p.kind: name for name, p in known.items() if p.kind in STARS}
    several, named = (stars.get(kind) for kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD))
    of_several = several in item and isinstance(item[several], tuple | list)
    of_named = named in item and isinstance(item[named], dict) and all(isinstance(key, str) for key in item[named])
    if not of_several and not of_named:
        return None
    rest = dict(item)
    kwargs = rest.pop(named) if of_named else {}
    args: list[Any] = []
    if of_several:
        args = list(rest.pop(several))
        before = [name for name, p in known.items() if p.kind in PLAIN and name in rest]
        args = [*(rest.pop(name) for name in before), *args]
    return _bound(callee, *args, **rest, **kwargs)


def _of_dict(callee: Callee, item: dict[Any, Any]) -> Bound:
    known = callee.signature.parameters
    collected = _collected(callee, item)
    if collected is not None:
        return collected
    if any(p.kind is p.VAR_KEYWORD for p in known.values()) and all(isinstance(key, str) for key in item):
        return _bound(callee, **item)
    unknown = [key for key in item if key not in known]
    if not unknown:
        return _bound(callee, **item)
    meant = [key for key in unknown if isinstance(key, str) and did_you_mean(key, known)]
    if len(unknown) < len(item) or (meant and len(callee.required) > 1):
        first = (meant or unknown)[0]
        raise callee.refusal(f"it has no argument {first!r}{did_you_mean(first, known)}")
    return _bound(callee, item)  # one argument that is a dict, such as x_dict


# -- data objects ------------------------------------------------------------------------------------------------

_OF_BATCHES = {"batch", "ptr", "num_graphs", "batch_size", "batch_dict"}


def _of_data(callee: Callee, data: BaseData, batched: bool) -> Bound:
    single = type(data) in (Data, HeteroData)
    if _takes_object(callee, data):
        wanted = callee.reads & _OF_BATCHES if callee.reads else batched and not {"input_id"} & set(data.keys())
        loaded = Batch.from_data_list([data]) if single and wanted and _field(data, "batch") is None else data
        missing = [name for name in sorted(callee.reads) if _field(loaded, name, worked_out=True) is None]
        if missing:
            raise _missing(callee, data, f"{missing[0]!r}, which it reads,", missing[0])
        return _bound(callee, loaded)
    found = _fields(callee, data)
    if single and _OF_BATCHES & (set(callee.required) - set(found)):
        found = _fields(callee, Batch.from_data_list([data]))
    missing = [name for name in callee.required if name not in found]
    if missing:
        raise _missing(callee, data, f"its argument {missing[0]!r}", missing[0])
    return _bound(callee, **found)


def _missing(callee: Callee, data: BaseData, what: str, name: str) -> DQConvertError:
    there = sorted(data.keys())  # PyG gives them in no order
    why = f"{what} is not in the {type(data).__name__}, which has {listed(there)}{did_you_mean(name, there)}"
    return callee.refusal(why, f"set data.{name}, or pass a tuple of its arguments")


def _takes_object(callee: Callee, data: BaseData) -> bool:
    """Returns True if the first argument is a data object, rather than a tensor of it."""
    first = next(iter(callee.signature.parameters.values()), None)
    if first is None or first.kind in STARS or first.name in callee.objects:
        return True
    if callee.reads or first.name in callee.tensors:
        return False
    required = callee.required
    return len(required) <= 1 and (required[:1] == ["batch"] or _field(data, first.name) is None)


def _fields(callee: Callee, data: BaseData) -> dict[str, Any]:
    """Returns the arguments that a data object has: of optional ones, what it stores, not what PyG works out."""
    required, found = callee.required, {}
    for name, parameter in callee.signature.parameters.items():
        if parameter.kind in STARS or name in callee.absent:
            continue
        value = _field(data, name, worked_out=name in required)
        if value is None and name in required and name in ("edge_index", "edge_index_dict"):
            value = _field(data, name.replace("edge_index", "adj_t"))  # as PyG's ToSparseTensor leaves it
        if value is not None:
            found[name] = value
    return found


def _field(data: BaseData, name: str, *, worked_out: bool = False) -> Any:
    if name.endswith("_dict") and isinstance(data, HeteroData):
        return data.collect(name.removesuffix("_dict"), allow_empty=True) or None
    if name in data:
        return data[name]
    return getattr(data, name, None) if worked_out else None


# -- parts -------------------------------------------------------------------------------------------------------


def settled(value: Any) -> Any:
    """Returns arguments of a call with iterators as lists, which can be gone through more than once.

    Example:
        >>> settled((1, iter([2, 3])))
        (1, [2, 3])
    """
    if isinstance(value, Tensor | BaseData | str | bytes | nn.Module) or hasattr(value, "shape"):
        return value
    if isinstance(value, Mapping):
        return {key: settled(item) for key, item in value.items()}
    if type(value) in (tuple, list) or is_named(value):
        return map_items(value, settled)
    if isinstance(value, Iterator) or (isinstance(value, Iterable) and all(isinstance(v, Tensor) for v in value)):
        return [settled(item) for item in value]
    return value
