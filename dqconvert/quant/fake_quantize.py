"""The quantizer of one value of a prepared model: a range that follows it, and the rounding to its grid."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from dqconvert.distributed import Ranks, ranks_of
from dqconvert.errors import InputShapeError, InputTypeError, ObserverError
from dqconvert.kernels import (
    Chain,
    Scheme,
    along,
    fake_quantize,
    learned_chain,
    learned_fake_quantize,
    mix,
    quantize_chain,
)
from dqconvert.qconfig import QSpec
from dqconvert.quant.observed_grid import ObservedGrid

Dropout: TypeAlias = str | tuple[float | str, str]
"""The path of a dropout layer; or the probability of a function, or its path, and the path of what says if it drops."""


class FakeQuantize(ObservedGrid):
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

    noise: float | None = None
    _root: Callable[[], nn.Module | None] | None = None
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
        super().__init__(spec, name, signed, channels)
        self.random = noise is not None or spec.rounding == "stochastic"
        self.noise = noise
        self.behind = behind
        self.channel_dim = channel_dim if spec.granularity == "channel" else None
        self.row_dim = row_dim
        self.observer_enabled = True
        self.fake_quant_enabled = True
        self.calibrating = False
        fused = None if self.channel_dim is not None else self.observer.scheme(self.quant_min, self.quant_max)
        self._fused = fused if fused is None else fused._replace(from_zero=self.from_zero)

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
        noise = self.noise if self.training else None
        dithers = self.random and self.training and self.spec.rounding == "stochastic"
        scheme, value = self.scheme_for(x, drawing=True), x
        if scheme is not None and self.row_dim == 0:
            if dithers:
                if scheme.observe:  # values as they are
                    self._observe(x, protected, groups)
                    scheme = scheme._replace(observe=False)
                value = self._dithered(x, groups, protected)
            chain = Chain.of(
                (None, scheme, None), self.ends(x.numel()), protected=protected, groups=groups, learned=self.learned
            )
            if self.learned:
                y = learned_chain(value, chain)
            else:
                y, ends = quantize_chain(value, chain)
                self.take(scheme, ends)
            y = y.to(x.dtype) if dithers else y  # narrow types were widened
            return y if noise is None else mix(x, y, noise)
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
        value = self._dithered(x, groups, protected) if dithers else x
        how = (*grid, self.quant_min, self.quant_max, protected, self.row_dim, dim)
        y = learned_fake_quantize(value, *how) if self.learned else fake_quantize(value, *how, self.spec.grad)
        y = y.to(x.dtype)
        return y if noise is None else mix(x, y, noise)

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

    def scheme_for(self, x: Tensor, *, drawing: bool = False) -> Scheme | None:
        """Returns how the operators that observe and round at once are to treat ``x``; ``None`` if they cannot.

        ``drawing``: whether who asks draws what training draws.
        """
        if x.layout is not torch.strided:
            raise InputTypeError(
                f"quantizer {self.name!r} rounds each value, zeros too, and got a {x.layout} tensor: give .to_dense()"
            )
        observing = self._observing
        if self.training and self.random and not drawing:
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
            self.set_range(lo, hi)

    @torch.no_grad()
    def _observe(self, x: Tensor, protected: Tensor | None, groups: Tensor | None = None) -> None:
        keep, old, ranks = None if protected is None else ~protected, (self.min_val, self.max_val), self._ranks(x)
        x = x.clamp(min=0) if self.from_zero else x  # a search is not to look at what is cut
        x = x if (stretch := self.stretch) == 1 else x / stretch
        if groups is None:
            lo, hi = self.observer.update(old, x, keep, self.row_dim, self.channel_dim, ranks)
        else:
            lo, hi = self.observer.update_groups(old, x, keep, self.row_dim, groups, ranks)
        self.set_range(lo, hi)
        if self.log_scale is not None and self.calibrating:
            self._begin_again()
        if self.observer.settles:
            self.is_observed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("random", self.noise is not None or self.spec.rounding == "stochastic")

    def extra_repr(self) -> str:
        scheme = "from zero" if self.from_zero else "symmetric" if self.spec.symmetric else "affine"
        parts = [self.name, f"bits={self.spec.bits}", f"signed={self.signed}", scheme]
        parts += [f"noise={self.noise}"] if self.noise is not None else []
        parts += [f"per {granularity_of(self.spec)}", repr(self.observer), f"range={self._range_text()}"]
        return ", ".join(parts)


_WEIGHT = re.compile(r"(.*\.)?weight(_\d+)?")
"""Names of quantizers of weights."""


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
