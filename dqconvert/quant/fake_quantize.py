"""The quantizer of one value of a prepared model: a range that follows it, and the rounding to its grid."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from dqconvert.distributed import Ranks, ranks_of
from dqconvert.errors import ConfigError, InputShapeError, InputTypeError, ObserverError
from dqconvert.kernels import (
    Chain,
    Scheme,
    along,
    fake_quantize,
    learned_chain,
    learned_fake_quantize,
    mix,
    nearest_seen,
    qparams,
    quantize_chain,
)
from dqconvert.kernels.derived import Derived
from dqconvert.qconfig import QSpec
from dqconvert.quant.learned import kept, learned_ends
from dqconvert.quant.observers import is_empty, observer_for
from dqconvert.words import kind_of

Dropout: TypeAlias = str | tuple[float | str, str]
"""The path of a dropout layer; or the probability of a function, or its path, and the path of what says if it drops."""


class FakeQuantize(nn.Module):
    """Rounds a value to the grid of a range that it observes in training.

    In training, each call first updates the range from the unprotected rows, then rounds these rows with the
    new range; protected rows pass in full precision. In evaluation the range is fixed, and every row is
    rounded: ``protected`` is ignored. NaN and infinities are not observed; rounded, NaN stays NaN and
    infinities become the ends of the grid.

    Args:
        spec: How to quantize.
        name: The quantizer's name in messages, such as ``"convs.0.quant.message"``.
        signed: Whether codes reach below zero (``spec.signed``, decided).
        channels: The number of channels; required with ``spec.granularity="channel"``, else ignored.
        channel_dim: The dimension of the channels.
        row_dim: The dimension that ``protected`` ranges over.
        noise: The share of values that training rounds, drawn at each call; ``None``: all.
        behind: The dropouts that values come out of, to be rounded as if before them, each as the path of a layer, or
            as the probability of a function (a number or a path) with the path of the flag that says whether it drops:
            what it keeps is scaled, and the grid with it.

    Attributes:
        min_val: Buffer, the lower end of the range: float32 whatever type the module is cast to, ``[]`` or
            ``[channels]`` or ``[groups]``; inf until something was observed.
        max_val: Likewise the upper end; -inf until something was observed.
        log_scale: Parameter, shaped like these and float32 always, with ``range="learned"``, else ``None``: the grid's
            step is that of the range times ``exp(log_scale)``. It is 0 at first.
        offset: Likewise, where the grid is affine: by how many codes the zero point moved.
        scale: float32, of the grid.
        zero_point: int32, of the grid.
        quant_min: The smallest code.
        quant_max: The largest code.
        grouped: Whether each group of in-degrees has a range of its own: then ``forward`` takes the group of each row.
        random: Whether what training makes of a value is drawn, so that the order of calls matters.
        from_zero: Whether the grid reaches from zero, however far the values and the range lie below it.
        observer_enabled: Whether to update the range.
        fake_quant_enabled: Whether to round; of an unrounded value the input itself is returned.
        calibrating: Whether to observe in evaluation, too, all rows.

    Raises:
        ConfigError: If ``channels`` is missing.
        ObserverError: If it has to round before it observed anything.

    Source:
        Tailor, Fernandez-Marques and Lane, *Degree-Quant*, ICLR 2021.

    Example:
        >>> from dqconvert.qconfig import QSpec
        >>> quantizer = FakeQuantize(QSpec(bits=4), name="conv.quant.message", signed=True)
        >>> x, protected = torch.tensor([[-7.9, 0.3], [100.1, 7.3]]), torch.tensor([False, True])
        >>> quantizer(x, protected).tolist()[1] == x[1].tolist()
        True
        >>> quantizer
        FakeQuantize(conv.quant.message, bits=4, signed=True, affine, per tensor, minmax, range=[-7.9, 0.3])
        >>> quantizer.eval()(x, protected).max() < 0.6
        tensor(True)
    """

    min_val: Tensor
    max_val: Tensor
    log_scale: nn.Parameter | None
    offset: nn.Parameter | None
    noise: float | None = None
    _root: Callable[[], nn.Module | None] | None = None
    _held: tuple[Tensor, Tensor] | None = None
    behind: tuple[Dropout, ...] = ()

    def __init__(
        self,
        spec: QSpec,
        *,
        name: str,
        signed: bool,
        channels: int | None = None,
        channel_dim: int = 0,
        row_dim: int = 0,
        noise: float | None = None,
        behind: tuple[Dropout, ...] = (),
    ) -> None:
        super().__init__()
        shape: tuple[int, ...] = ()
        if spec.granularity == "channel":
            if channels is None:
                raise ConfigError(f"quantizer {name!r}: granularity='channel' needs the number of channels")
            shape = (channels,)
        if spec.groups_value is not None:
            shape = (spec.groups_value,)
        self.spec = spec
        self.grouped = spec.granularity == "degree"
        self.random = noise is not None or spec.rounding == "stochastic"
        self.name = name
        self.noise = noise
        self.behind = behind
        self.signed = signed
        self.from_zero = spec.signed == "graph" and not signed
        self.channel_dim = channel_dim if spec.granularity == "channel" else None
        self.row_dim = row_dim
        self.quant_min, self.quant_max = spec.quant_range(signed)
        self.observer = observer_for(replace(spec, symmetric=False) if self.from_zero else spec)
        self.observer_enabled = True
        self.fake_quant_enabled = True
        self.calibrating = False
        self.register_buffer("min_val", torch.full(shape, torch.inf, dtype=torch.float32))
        self.register_buffer("max_val", torch.full(shape, -torch.inf, dtype=torch.float32))
        learned = spec.range == "learned"
        self.register_parameter("log_scale", nn.Parameter(torch.zeros(shape)) if learned else None)
        shifted = learned and not (spec.symmetric or self.from_zero)
        self.register_parameter("offset", nn.Parameter(torch.zeros(shape)) if shifted else None)
        # Whether the range is known to hold something. The buffers are the truth; this spares looking at
        # them, which would wait for an accelerator, in every call.
        self._known_observed = False
        fused = None if self.channel_dim is not None else self.observer.scheme(self.quant_min, self.quant_max)
        self._fused = fused if fused is None else fused._replace(from_zero=self.from_zero)

    @property
    def scale(self) -> Tensor:
        return self._qparams()[0]

    @property
    def zero_point(self) -> Tensor:
        return self._qparams()[1]

    def _qparams(self) -> tuple[Tensor, Tensor]:
        # What is learned are the ends of an affine grid.
        symmetric = self.observer.spec.symmetric and self.log_scale is None
        return qparams(*self.range, self.quant_min, self.quant_max, symmetric)

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """The range in force: the one observed, of the nearest group if need be, or what training has made of it."""
        with torch.no_grad():
            return self._start if self.log_scale is None else self._ends(1)

    @property
    def _seen(self) -> tuple[Tensor, Tensor]:
        """The range observed; that of a group which saw nothing is that of the nearest which did."""
        return kept(_nearest_seen, self._apart) if self.grouped else (self.min_val, self.max_val)

    @property
    def _start(self) -> tuple[Tensor, Tensor]:
        if self.grouped or not (self.from_zero or self.log_scale is not None):
            low, high = self._seen
        else:
            low, high = self._apart
        return kept(_above_zero, (low,)) if self.from_zero else low, high

    @property
    def _apart(self) -> tuple[Tensor, Tensor]:
        """The range observed, as tensors that nobody else can write into: what is kept is derived from them."""
        ends, held = (self.min_val, self.max_val), self._held
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack() > 0
            or self.min_val.device.type != "cpu"
        ):
            return ends  # whose values are not to be waited for; what torch writes is noticed
        if held is None or not torch.equal(held[0], ends[0]) or not torch.equal(held[1], ends[1]):
            with torch.inference_mode(False):
                held = self._held = ends[0].clone(), ends[1].clone()
        return held

    @property
    def learned(self) -> bool:
        """True if the range is learned, and somebody takes gradients."""
        return self.spec.range == "learned" and torch.is_grad_enabled()

    @property
    def stretch(self) -> float:
        """By how much the dropouts before it scale values and grid now."""
        root = self._root() if self.behind and self._root is not None else None
        stretch = 1.0
        for one in self.behind if root is not None else ():
            p = probability(cast(nn.Module, root), one)
            stretch *= 1 / (1 - p) if p < 1 else 1.0
        return stretch

    def bind(self, root: nn.Module) -> None:
        """Says whose parts ``behind`` names by path. Of a copy that is another one, which has to say so again."""
        self._root = weakref.ref(root)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_root", "_held")}

    def ends(self, number: int) -> tuple[Tensor, Tensor]:
        """Returns the range as operators take it, for a value of so many numbers; with a gradient if it is learned."""
        ends, stretch = self._ends(number), self.stretch if self.behind else 1
        return ends if stretch == 1 else (ends[0] * stretch, ends[1] * stretch)

    def _ends(self, number: int) -> tuple[Tensor, Tensor]:
        log_scale = self.log_scale if self.spec.range == "learned" else None
        if log_scale is None or not self.is_observed():
            return self._seen
        return learned_ends(
            self._start,
            log_scale,
            self.offset,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            symmetric=self.observer.spec.symmetric,
            number=number // max(self.min_val.numel(), 1),
        )

    def forward(self, x: Tensor, protected: Tensor | None = None, groups: Tensor | None = None) -> Tensor:
        """Observes and rounds ``x``, a floating tensor.

        Args:
            x: The values.
            protected: bool ``[x.size(row_dim)]``; ``None``: no row is.
            groups: uint8 ``[x.size(row_dim)]``, the group of each row, if there is a range for each.
        """
        if self.grouped:
            self.check_groups(groups, x.size(self.row_dim) if x.dim() > 0 else -1)
        if not self.training:
            protected = None
        scheme = self.scheme_for(x)
        if scheme is not None and self.row_dim == 0:
            chain = Chain.of(
                (None, scheme, None), self.ends(x.numel()), protected=protected, groups=groups, learned=self.learned
            )
            if self.learned:
                return learned_chain(x, chain)
            y, ends = quantize_chain(x, chain)
            self.take(scheme, ends)
            return y
        observing = self._observing
        if observing:
            self._observe(x, protected, groups)
        if not self.fake_quant_enabled:
            return x
        if not observing and self._lacks_range(x):
            raise ObserverError(
                f"quantizer {self.name!r} never observed a value (what is NaN or infinite does not count), so it has "
                f"no range to quantize with: this evaluation came before the first training step. Train one step first "
                f"(where a trainer validates before it trains, as Lightning does, Trainer(num_sanity_val_steps=0)), or "
                f"run dqconvert.calibrate."
            )
        lo, hi = grid = self.ends(x.numel()) if self.learned else self._qparams()
        if not self.learned and (stretch := self.stretch) != 1:
            lo, hi = grid = lo * stretch, hi
        dim = self.channel_dim
        if groups is not None:  # each row has the grid of its group
            grid, dim = (lo[groups.long()], hi[groups.long()]), self.row_dim
        value = x
        if self.training and self.spec.rounding == "stochastic":
            value = self._dithered(x, groups, protected)
        how = (*grid, self.quant_min, self.quant_max, protected, self.row_dim, dim)
        y = learned_fake_quantize(value, *how) if self.learned else fake_quantize(value, *how, self.spec.grad)
        y = y.to(x.dtype)
        return mix(x, y, self.noise) if self.training and self.noise is not None else y

    def _dithered(self, x: Tensor, groups: Tensor | None, protected: Tensor | None) -> Tensor:
        """Returns values that are rounded stochastically by being rounded to the nearest: moved by up to half a step.

        ``floor(v + u)`` is ``round(v + u - 1/2)``, for ``u`` uniform from 0 to 1. In float32 at least: narrower types
        would lose what was added.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        step, dim = self.scale.to(wide) * self.stretch, self.channel_dim
        if groups is not None:
            step, dim = step[groups.long()], self.row_dim
        step = step if dim is None else along(step, x, dim)
        moved = (torch.rand_like(x, dtype=wide) - 0.5) * step
        return x + (moved if protected is None else moved.masked_fill(along(protected, x, self.row_dim), 0))

    def check_groups(self, groups: Tensor | None, rows: int) -> None:
        """Raises `InputShapeError` unless there is a group for each row."""
        if groups is None or groups.shape != (rows,):
            raise InputShapeError(
                f"quantizer {self.name!r} has a range for each group of in-degrees, and takes the group of each row: "
                f"got {'none' if groups is None else tuple(groups.shape)} for {rows} rows"
            )

    def _lacks_range(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling():  # such code cannot look into a buffer; `eval()` has
            return not self._known_observed
        return x.numel() > 0 and not self.is_observed()

    @property
    def _observing(self) -> bool:
        if self.observer.settles and self._settled:
            return self.observer_enabled and self.calibrating
        return self.observer_enabled and (self.training or self.calibrating)

    @property
    def _settled(self) -> bool:
        # On every rank the same: what another one sent into the buffers counts.
        return self._known_observed or (ranks_of(self.name) is not None and self.is_observed())

    def _ranks(self, x: Tensor) -> Ranks | None:
        """Returns who observes ``x`` together; a parameter as it is, they need not: it is the same on all."""
        alike = isinstance(x, nn.Parameter) and self.spec.sample is None and _WEIGHT.fullmatch(self.name)
        return None if alike else ranks_of(self.name)

    def scheme_for(self, x: Tensor) -> Scheme | None:
        """Returns how the operators that observe and round at once are to treat ``x``; ``None`` if they cannot."""
        if x.layout is not torch.strided:
            raise InputTypeError(
                f"quantizer {self.name!r} rounds each value, zeros too, and got a {x.layout} tensor: give .to_dense()"
            )
        observing = self._observing
        if self.training and self.random:
            return None
        if self._fused is None or not self.fake_quant_enabled or x.dim() == 0:
            return None
        if self.spec.sample is not None and x.device.type != "cpu":
            return None  # on the CPU, the exact percentile costs these operators less than a sample would
        if not observing and not self._known_observed:
            return None  # the long way finds out, and complains
        if observing and (self.observer.settles or self.grouped):
            return None  # such a range is found from the values themselves, once; those of groups, group by group
        if not observing:
            return self._fused._replace(observe=False)
        ranks = self._ranks(x)
        return self._fused if ranks is None else self._fused._replace(shared=ranks.tag)

    def take(self, scheme: Scheme, ends: Tensor) -> None:
        """Takes the new range, float32 ``[2]``, that such an operator returns."""
        if scheme.observe:
            lo, hi = (ends if not self.behind or (stretch := self.stretch) == 1 else ends / stretch).unbind()
            self.min_val.copy_(lo)
            self.max_val.copy_(hi)

    @torch.no_grad()
    def _observe(self, x: Tensor, protected: Tensor | None, groups: Tensor | None = None) -> None:
        keep, old, ranks = None if protected is None else ~protected, (self.min_val, self.max_val), self._ranks(x)
        x = x.clamp(min=0) if self.from_zero else x  # a search is not to look at what is cut
        x = x if (stretch := self.stretch) == 1 else x / stretch
        if groups is None:
            lo, hi = self.observer.update(old, x, keep, self.row_dim, self.channel_dim, ranks)
        else:
            lo, hi = self.observer.update_groups(old, x, keep, self.row_dim, groups, ranks)
        # In place: the buffers may be shared between processes, or captured by compiled code.
        self.min_val.copy_(lo)
        self.max_val.copy_(hi)
        if self.log_scale is not None and self.calibrating:
            self._begin_again()
        if self.observer.settles:
            self.is_observed()

    @torch.no_grad()
    def _begin_again(self) -> None:
        """Forgets what was learned: the step is that of the range observed."""
        for learned in (self.log_scale, self.offset):
            if learned is not None:
                learned.zero_()

    def is_observed(self) -> bool:
        """True if every channel, or any group of in-degrees, has observed a value.

        Reads the buffers, which waits for an accelerator, only until the answer was once yes. ``eval()`` and
        ``load_state_dict`` look ahead, so that evaluating a trained or loaded quantizer waits for nothing.
        """
        if not self._known_observed and not self.min_val.is_meta:
            empty = is_empty((self.min_val, self.max_val))
            self._known_observed = not bool(empty.all() if self.grouped else empty.any())
        return self._known_observed

    def reset(self) -> None:
        """Forgets the range, as if nothing had been observed."""
        self.min_val.fill_(torch.inf)
        self.max_val.fill_(-torch.inf)
        self._begin_again()
        self._known_observed = False

    def train(self, mode: bool = True) -> FakeQuantize:
        super().train(mode)
        if not mode:
            self.is_observed()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FakeQuantize:
        # `fn` moves, shares or casts. A range is not cast: half precision would move the grid it was trained
        # with.
        before = {"min_val": self.min_val, "max_val": self.max_val}
        learned = {name: old.data for name, old in self._parameters.items() if old is not None}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype != torch.float32:
                setattr(self, name, old.to(new.device))
        for name, old in learned.items():
            parameter = self.get_parameter(name)
            if parameter.dtype != torch.float32:
                parameter.data = old.to(parameter.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # With assign=True the buffers are the checkpoint's own tensors, in whatever type it has.
        self.min_val, self.max_val = self.min_val.float(), self.max_val.float()
        for parameter in self.parameters(recurse=False):
            parameter.data = parameter.data.float()
        self._known_observed = False
        self.is_observed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("log_scale", "offset"):  # pickled before there were any
            self._parameters.setdefault(name, None)
        self.__dict__.setdefault("grouped", self.spec.granularity == "degree")
        self.__dict__.setdefault("random", self.noise is not None or self.spec.rounding == "stochastic")

    def extra_repr(self) -> str:
        scheme = "from zero" if self.from_zero else "symmetric" if self.spec.symmetric else "affine"
        parts = [self.name, f"bits={self.spec.bits}", f"signed={self.signed}", scheme]
        parts += [f"noise={self.noise}"] if self.noise is not None else []
        parts += [f"per {granularity_of(self.spec)}", repr(self.observer), f"range={self._range_text()}"]
        return ", ".join(parts)

    def _range_text(self) -> str:
        if self.min_val.is_meta or not self.is_observed():
            return "never observed"
        if self.min_val.dim() > 0:
            return f"{self.min_val.numel()} {'groups' if self.grouped else 'channels'}"
        lo, hi = self.range
        return f"[{lo.item():.6g}, {hi.item():.6g}]"


_WEIGHT = re.compile(r"(.*\.)?weight(_\d+)?")
"""Names of quantizers of weights."""

_nearest_seen, _above_zero = Derived(nearest_seen), Derived(functools.partial(torch.clamp, min=0))
"""Kept, as it takes longer than to round some rows."""


def probability(root: nn.Module, dropout: Dropout) -> float:
    """Returns what a dropout of a model drops now."""

    def part(path: str) -> Any:
        return functools.reduce(getattr, path.split("."), cast(Any, root))

    p, drops = (part(dropout).p, part(dropout).training) if isinstance(dropout, str) else (dropout[0], part(dropout[1]))
    return float(part(p) if isinstance(p, str) else p) if drops else 0.0


def granularity_of(spec: QSpec) -> str:
    """Returns what has a range of its own, in words.

    Example:
        >>> granularity_of(QSpec(granularity="degree"))
        'in-degree group (8)'
    """
    return spec.granularity if spec.groups_value is None else f"in-degree group ({spec.groups_value})"


def enable_observer(module: nn.Module) -> None:
    """Lets every quantizer in a module update its range in training; also as ``module.apply(enable_observer)``."""
    for quantizer in _quantizers(module, "enable_observer"):
        quantizer.observer_enabled = True


def disable_observer(module: nn.Module) -> None:
    """Freezes the range of every quantizer in a module; also as ``module.apply(disable_observer)``."""
    for quantizer in _quantizers(module, "disable_observer"):
        quantizer.observer_enabled = False
        quantizer.is_observed()  # looked up once, as compiled code cannot


def enable_fake_quant(module: nn.Module) -> None:
    """Lets every quantizer in a module round; also as ``module.apply(enable_fake_quant)``."""
    for quantizer in _quantizers(module, "enable_fake_quant"):
        quantizer.fake_quant_enabled = True


def disable_fake_quant(module: nn.Module) -> None:
    """Makes every quantizer in a module only observe; also as ``module.apply(disable_fake_quant)``."""
    for quantizer in _quantizers(module, "disable_fake_quant"):
        quantizer.fake_quant_enabled = False


def _quantizers(module: nn.Module, door: str) -> Iterator[FakeQuantize]:
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{door} takes a prepared module, got {kind_of(module)}: module.apply(dqconvert.{door}), or "
            f"dqconvert.{door}(module)."
        )
    return (child for child in module.modules() if isinstance(child, FakeQuantize))
