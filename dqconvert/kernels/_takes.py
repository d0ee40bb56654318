"""The gate before compiled loops.

A loop reads and writes by pointers, and does not look where. What it takes for granted stands here, one line for each
tensor, and is looked at before it runs: type, device, shape, and that rows which are named are there. Whatever an
operator is given, by a graph, a file or a call, no loop leaves the memory of its arguments.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqconvert.errors import InputShapeError, InputTypeError
from dqconvert.kernels.order import check_order

_TYPES: dict[str, tuple[torch.dtype, ...]] = {
    "real": (torch.float32, torch.float64),
    "index": (torch.int64, torch.int32),
    "number": (torch.float32, torch.uint8),
    "any": (),
    **{name: (getattr(torch, name),) for name in ("float32", "float64", "uint8", "int16", "int32", "int64", "bool")},
}
_ORDER, _LIST = "order", "list"
_STRIDED, _LISTS = torch.strided, (list, tuple)
_FLAGS = frozenset((int, bool, str, type(None)))

ORDINARY = frozenset((Tensor, torch.nn.Parameter))
"""Classes of tensors whose values the loops may read."""

_MANY = 256
"""Forms of arguments that an operator knows at most: batches may all be of different sizes."""


class _Need(NamedTuple):
    """What one argument has to be; `shapes`: the ones that it may have, `None`: any; `of`: the type of a list's."""

    name: str
    kind: str
    optional: bool
    shapes: tuple[tuple[str | int | tuple[str, int], ...], ...] | None
    of: str = "any"


Check = Callable[[dict[str, int], Any], None]


class Takes:
    """What an operator's arguments have to be, so that its loops stay in their memory.

    Args:
        operator: What messages call it.
        needs: In the order of the operator's arguments, each by its name: a type and a shape, such as
            ``"real [rows, columns]"``. The type is a dtype of torch, ``real`` (float32 or float64), ``index`` (int64 or
            int32), ``number`` (float32 or uint8), ``any``, or an earlier argument that has the same. ``?`` behind it:
            or ``None``. In a shape, a name stands for one size everywhere; ``nodes + 1`` and plain numbers are sizes,
            too, ``...`` for any more dimensions, and ``=x`` for the shape of ``x``. Shapes between which there is a
            choice are set apart by ``|``. ``"size"`` is a number of at least 0, a size of that name; ``"list number"``
            a list of tensors of a type, of any shapes; ``"flag"`` a number, a string or ``None`` that only ``also``
            looks at; ``"free"`` is not looked at.
            ``"order [nodes, edges, rows]"`` is a list of three tensors, as
            :class:`dqconvert.kernels.edge_order.EdgeOrder` has them.
        orders: Names of arguments that are an order together: where the edges of each node begin, and what the edges
            name; and the size of what they name.
        also: Looks at what no line can say, given the sizes by name and the arguments: at types, shapes, sizes and
            flags, once for each form.
        always: Likewise, and every time.

    Example:
        >>> takes = Takes("product", x="real [rows, depth]", weight="x [columns, depth]")
        >>> takes((torch.ones(2, 3), torch.ones(4, 3)))
        {'rows': 2, 'depth': 3, 'columns': 4}
        >>> takes((torch.ones(2, 3), torch.ones(4, 5)))
        Traceback (most recent call last):
            ...
        dqconvert.errors.InputShapeError: product: weight has shape (4, 5), expected [columns, depth] with depth = 3
    """

    def __init__(
        self,
        operator: str,
        *,
        orders: Sequence[tuple[str, str, str]] = (),
        also: Check | None = None,
        always: Check | None = None,
        **needs: str,
    ) -> None:
        self.operator = operator
        self._needs = tuple(_parse(name, need) for name, need in needs.items())
        self._places = {name: place for place, name in enumerate(needs)}
        self._also, self._always = also, always
        self._orders = tuple((self._places[ptr], self._places[named], rows) for ptr, named, rows in orders)
        self._looked_at = tuple(need.kind != "free" for need in self._needs)
        lists = [(self._places[need.name], _order_sizes(need)) for need in self._needs if need.kind == _ORDER]
        self._lists = tuple((place, edges, rows) for place, (_, edges, rows) in lists)
        self._known: dict[tuple[Any, ...], dict[str, int]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arguments."""
        return tuple(self._places)

    def __call__(self, args: Sequence[Any]) -> dict[str, int]:
        """Checks the arguments.

        Returns:
            The sizes by name.

        Raises:
            InputTypeError: For another type, device or layout.
            InputShapeError: For another shape.
            InputIndexError: For an order that is none, or that names rows that are not there.
        """
        form = self._form(args)
        sizes = None if form is None else self._known.get(form)
        if sizes is None:
            sizes = self._sizes(args)
            if self._also is not None:
                self._also(sizes, args)
            if form is not None:
                if len(self._known) >= _MANY:
                    self._known.clear()
                self._known[form] = sizes
        self._check_values(sizes, args)
        return sizes

    def knows(self, args: Sequence[Any]) -> bool:
        """Returns True if arguments of this form passed before, and these do, too; False if it has yet to be checked.

        Raises:
            InputIndexError: For an order that is none, or that names rows that are not there.
        """
        form = self._form(args)
        sizes = None if form is None else self._known.get(form)
        if sizes is None:
            return False
        self._check_values(sizes, args)
        return True

    def _check_values(self, sizes: dict[str, int], args: Sequence[Any]) -> None:
        """Checks what depends on values, too: every time."""
        for ptr, named, size in self._orders:
            check_order(args[ptr], args[named], sizes[size])
        for place, edges, rows in self._lists:
            if (order := args[place]) is not None:
                check_order(order[0], order[1], sizes[edges])
                check_order(order[0], order[2], sizes[rows])
        if self._always is not None:
            self._always(sizes, args)

    def _form(self, args: Sequence[Any]) -> tuple[Any, ...] | None:
        """Returns types, shapes, sizes and flags, all that :meth:`_sizes` and ``also`` look at: of small tensors that
        takes longer than to compute with them. ``None`` for tensors that are not ordinary."""
        form: list[Any] = []
        for given in itertools.compress(args, self._looked_at):
            kind = type(given)
            if kind in ORDINARY:
                if not given.is_cpu or given.layout is not _STRIDED:
                    return None
                form += given.dtype, given.shape
            elif kind in _FLAGS:
                form += (given,)
            elif kind is list or isinstance(given, _LISTS):
                form += (_LIST,)
                for part in given:
                    if type(part) not in ORDINARY or not part.is_cpu or part.layout is not _STRIDED:
                        return None
                    form += part.dtype, part.shape
                form += (_LIST,)
            else:
                return None
        return tuple(form)

    def _sizes(self, args: Sequence[Any]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for need, given in zip(self._needs, args, strict=False):
            kind = need.kind
            if (given is None and need.optional) or kind in ("free", "flag"):
                continue
            if kind == "size":
                self._size(need, given, sizes)
            elif kind == _ORDER:
                self._order(need, given, sizes)
            elif kind == _LIST:
                for number, part in enumerate(given):
                    self._tensor(need._replace(name=f"{need.name}[{number}]", kind=need.of), part, args)
            else:
                self._tensor(need, given, args)
                if need.shapes is not None and not any(self._fits(shape, given, sizes, args) for shape in need.shapes):
                    raise self._misshapen(need, given, sizes)
        return sizes

    def _tensor(self, need: _Need, given: Any, args: Sequence[Any]) -> None:
        if not isinstance(given, Tensor):
            raise InputTypeError(f"{self.operator}: {need.name} must be a tensor, got {type(given).__name__}")
        if not given.is_cpu or given.layout is not torch.strided:
            raise InputTypeError(
                f"{self.operator}: {need.name} must lie on the CPU as all others, entry by entry (torch.strided), got "
                f"{given.layout} on {given.device}"
            )
        kinds = _TYPES.get(need.kind)
        if kinds is None:
            kinds = (args[self._places[need.kind]].dtype,)
        if kinds and given.dtype not in kinds:
            wanted = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
            raise InputTypeError(f"{self.operator}: {need.name} must be {wanted}, got {given.dtype}")

    def _size(self, need: _Need, given: Any, sizes: dict[str, int]) -> None:
        if not isinstance(given, int) or given < 0:
            raise InputShapeError(f"{self.operator}: {need.name} must be a number of at least 0, got {given!r}")
        if sizes.setdefault(need.name, given) != given:
            raise InputShapeError(f"{self.operator}: {need.name} is {given}, and what there is has {sizes[need.name]}")

    def _order(self, need: _Need, given: Any, sizes: dict[str, int]) -> None:
        if not isinstance(given, list | tuple) or len(given) != 3:
            raise InputTypeError(f"{self.operator}: {need.name} must be the three tensors of an order")
        nodes, edges, _ = _order_sizes(need)
        shapes: tuple[Any, ...] = ((((nodes, 1),),), ((edges,),), ((edges,),))
        for part, shape, field in zip(given, shapes, ("ptr", "edges", "others"), strict=True):
            one = _Need(f"{need.name}.{field}", "int64", False, shape)
            self._tensor(one, part, ())
            if not self._fits(shape[0], part, sizes, ()):
                raise self._misshapen(one, part, sizes)

    def _fits(self, shape: tuple[Any, ...], given: Tensor, sizes: dict[str, int], args: Sequence[Any]) -> bool:
        """True if a tensor has a shape; sizes that were not known before are known then."""
        found = given.shape
        if shape and shape[-1] == "...":
            if len(found) < len(shape) - 1:
                return False
            shape = shape[:-1]
        elif len(shape) == 1 and isinstance(shape[0], str) and shape[0][:1] == "=":
            return bool(found == args[self._places[shape[0][1:]]].shape)
        elif len(found) != len(shape):
            return False
        new: dict[str, int] = {}
        for size, wanted in zip(found, shape, strict=False):
            if isinstance(wanted, str):
                if new.setdefault(wanted, sizes.get(wanted, size)) != size:
                    return False
            elif isinstance(wanted, int):
                if size != wanted:
                    return False
            elif new.setdefault(wanted[0], sizes.get(wanted[0], size - wanted[1])) != size - wanted[1]:
                return False
        sizes.update(new)
        return all(size >= 0 for size in new.values())

    def _misshapen(self, need: _Need, given: Tensor, sizes: dict[str, int]) -> InputShapeError:
        shapes = need.shapes or ()
        wanted = " or ".join(f"[{', '.join(map(_written, shape))}]" for shape in shapes)
        names = {part[0] if isinstance(part, tuple) else part for shape in shapes for part in shape}
        known = ", ".join(f"{name} = {sizes[name]}" for name in sizes if name in names)
        shape = tuple(given.shape)
        return InputShapeError(
            f"{self.operator}: {need.name} has shape {shape}, expected {wanted}{f' with {known}' if known else ''}"
        )


def _order_sizes(need: _Need) -> tuple[str, ...]:
    """Returns the names of an order's sizes: of nodes, edges, and rows that edges name."""
    return tuple(str(size) for size in (need.shapes or ((),))[0])


def _written(size: str | int | tuple[str, int]) -> str:
    return f"{size[0]} + {size[1]}" if isinstance(size, tuple) else str(size)


def _parse(name: str, need: str) -> _Need:
    kind, _, rest = need.partition(" ")
    shapes = re.findall(r"\[([^]]*)\]", rest)
    sizes = tuple(tuple(_parsed(size.strip()) for size in shape.split(",") if size.strip()) for shape in shapes)
    return _Need(name, kind.removesuffix("?"), kind.endswith("?"), sizes or None, rest if kind == _LIST else "any")


def _parsed(size: str) -> str | int | tuple[str, int]:
    if size.lstrip("-").isdigit():
        return int(size)
    name, plus, more = size.partition("+")
    return (name.strip(), int(more)) if plus else size


__all__ = ["ORDINARY", "Takes"]
