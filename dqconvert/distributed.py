"""Ranges over several processes: those that train together observe the values of all of them.

Each process of a group, a *rank*, runs the same model on data of its own, as ``DistributedDataParallel`` and FSDP2 have
it. A range that each rank kept for itself would be another grid on each. So where ``torch.distributed`` is initialized,
a quantizer observes the union of all ranks' values, exactly, and every rank ends with the same range, bit for bit.
Weights are the same everywhere and are not spoken of.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed

from dqconvert.errors import DistributedError

_P = ParamSpec("_P")
_T = TypeVar("_T")


_enabled = True
"""Of the process, not of a thread: compiled code looks at it, too."""


class sync_ranges:  # noqa: N801  (used as torch.set_grad_enabled is)
    """Switches on or off that ranks observe the union of their values; as a context manager, for what runs inside.

    It is on at first, and does something only where ``torch.distributed`` is initialized, with more than one process.
    Then all ranks have to run the same quantizers in the same order while they observe: training steps, and
    :func:`dqconvert.calibrate`. How many values a rank has does not matter; none will do. Evaluation, and calls while
    observers are disabled, are each rank's own. Switch it off for what one rank does alone, and for processes that
    train models of their own.

    Args:
        enabled: Whether ranges are those of all ranks.

    Example:
        >>> with sync_ranges(False):
        ...     pass  # calibrate on this rank alone, say
    """

    def __init__(self, enabled: bool) -> None:
        global _enabled
        self._before, _enabled = _enabled, bool(enabled)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _enabled
        _enabled = self._before


class Ranks:
    """The ranks of the default process group, as those ask them who merge ranges.

    Args:
        tag: By which ranks tell whether they speak of the same quantizer, below 2^15.
    """

    def __init__(self, tag: int) -> None:
        self.tag = tag

    def add_up(self, numbers: Sequence[int], room: int = 16) -> list[int]:
        """Returns whole numbers, each added up over all ranks: in one call, of `room` numbers, whatever they are for.

        Raises:
            DistributedError: If another rank speaks of something else.
        """
        padded = [self.tag, self.tag**2, *numbers, *[0] * (room - len(numbers))]
        total = torch.tensor(padded, dtype=torch.int64, device=_place(torch.device("cpu")))
        distributed.all_reduce(total)
        tags, squares, *found = total.tolist()
        if squares * distributed.get_world_size() != tags**2:  # equal only where all are (Cauchy and Schwarz)
            raise _elsewhere()
        return found[: len(numbers)]

    def widest(self, lo: Tensor, hi: Tensor, room: int = 16) -> tuple[Tensor, Tensor]:
        """Returns the smallest `lo` and the largest `hi` of all ranks, float32 and of one shape: in one call.

        Of more channels than there is `room` for a second call says first that all ranks speak of the same.

        Raises:
            DistributedError: If another rank speaks of something else.
        """
        number = lo.numel()
        if 2 * number > room:
            self.add_up([])  # calls of different lengths would fail in words of the backend
        ends = torch.full((2 + max(room, 2 * number),), float(self.tag), dtype=torch.float64, device=lo.device)
        ends[1], ends[2 : 2 + number], ends[2 + number : 2 + 2 * number] = -self.tag, -lo.reshape(-1), hi.reshape(-1)
        ends = ends.to(_place(lo.device))
        distributed.all_reduce(ends, distributed.ReduceOp.MAX)
        highest, lowest = ends[:2].tolist()
        if highest != -lowest:
            raise _elsewhere()
        least, most = ends[2 : 2 + 2 * number].to(lo).view(2, *lo.shape)
        return -least, most

    def gather(self, values: Tensor) -> Tensor:
        """Returns the tensors of all ranks, which have one shape and one type, as one: `[ranks, *values.shape]`."""
        sent = values.to(_place(values.device)).contiguous()
        every = sent.new_empty((distributed.get_world_size(), *sent.shape))
        distributed.all_gather(list(every.unbind()), sent)
        return every.to(values.device)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Returns the rows of all ranks, one rank behind the other; each may have another number of them."""
        counts = self.gather(torch.tensor([self.tag, len(rows)], device=rows.device))
        if (counts[:, 0] != self.tag).any():
            raise _elsewhere()
        numbers = counts[:, 1].tolist()
        padded = rows.new_zeros((max(numbers), *rows.shape[1:]))
        padded[: len(rows)] = rows
        return torch.cat([part[:number] for part, number in zip(self.gather(padded), numbers, strict=True)])


def _place(device: torch.device) -> torch.device:
    """Returns where the default group takes a tensor of this device from: as it lies, where the group can."""
    return place_of(device, distributed.get_backend_config())


def place_of(device: torch.device, backends: str) -> torch.device:
    """Returns where a group with these backends takes a tensor of a device from.

    Args:
        backends: Device and backend pairs, as ``torch.distributed.get_backend_config`` has them.

    Example:
        >>> for backends in ("cpu:gloo,cuda:gloo", "cpu:gloo,cuda:nccl"):
        ...     [str(place_of(torch.device(device), backends)) for device in ("cpu", "cuda:1")]
        ['cpu', 'cpu']
        ['cpu', 'cuda:1']
    """
    known = dict(pair.split(":") for pair in backends.split(","))
    if device.type in known and (device.type == "cpu" or known[device.type] != "gloo"):  # gloo gathers none of a GPU
        return device
    if "cpu" in known:
        return torch.device("cpu")
    return torch.device(next(iter(known)), torch.accelerator.current_device_index())


def _elsewhere() -> DistributedError:
    return DistributedError(
        "this rank observes the values of one quantizer while another rank is elsewhere: all have to call the same "
        "layers in the same order while ranges are observed, also those that have no data (an empty batch will do). "
        "dqconvert.sync_ranges(False) lets each rank observe by itself."
    )


def several_ranks() -> bool:
    """True if ``torch.distributed`` is initialized, with more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_enabled() -> bool:
    """True unless :class:`sync_ranges` switched it off."""
    return _enabled


def ranks_of(name: str) -> Ranks | None:
    """Returns the ranks that observe together what has this name; ``None`` if this process observes alone.

    Raises:
        DistributedError: In code that is being compiled, which would fix the calls of one rank.
    """
    if not _enabled or not several_ranks():
        return None
    if torch.compiler.is_compiling():
        raise DistributedError(
            "torch.compile and ranges of several ranks do not go together yet: train without torch.compile, or with "
            "dqconvert.disable_observer or dqconvert.sync_ranges(False)"
        )
    return Ranks(1 + zlib.crc32(name.encode()) % ((1 << 15) - 1))


def by_itself(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Returns a function that trains or calibrates in one process, whatever other ranks do meanwhile."""

    @functools.wraps(function)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with sync_ranges(False):
            return function(*args, **kwargs)

    return alone


def in_step(items: Iterable[_T], what: str) -> Iterator[_T]:
    """Yields items as they come, and raises on every rank if one has fewer than others.

    Args:
        what: Who goes through them, for the error.

    Raises:
        DistributedError: Where some ranks have one more item and others have none.
    """
    ranks, number = ranks_of(what), 0
    rest = iter(items)
    while True:
        item: Any = next(rest, _NO_MORE)
        if ranks is not None:
            (have,) = ranks.add_up([item is not _NO_MORE])
            if have not in (0, distributed.get_world_size()):
                raise DistributedError(
                    f"{what}: after {number} batches {have} of {distributed.get_world_size()} ranks have one more, and "
                    f"the others none: give every rank as many, or say how many with batches="
                )
        if item is _NO_MORE:
            return
        yield item
        number += 1


_NO_MORE = object()
