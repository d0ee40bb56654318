"""What rounding one value of a model to few bits does to its outputs; and the bits that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from dqconvert import notebook
from dqconvert.bits import AverageBits, Counted, averages_of
from dqconvert.errors import ConfigError
from dqconvert.mixed.knapsack import knapsack
from dqconvert.mixed.sites import Key, config_with
from dqconvert.qconfig import QConfig, Rule
from dqconvert.words import count as counted
from dqconvert.words import did_you_mean, listed, shortened

Count: TypeAlias = Literal["elements", "hidden", "quantizers"]
"""What an average of bits counts, see :class:`dqconvert.bits.AverageBits`."""


def check_budget(budget: float, weights: float | None, count: Count, bits: tuple[int, ...]) -> None:
    """Raises :class:`ConfigError` unless bits can be chosen within a budget."""
    if count not in get_args(Count):
        known = ", ".join(map(repr, get_args(Count)))
        raise ConfigError(f"count={shortened(count)}{did_you_mean(count, get_args(Count))} (there are: {known})")
    for name, value in {"budget": budget, "weights": budget if weights is None else weights}.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ConfigError(f"{name}={shortened(value)}: must be a number of bits, such as 4.0")
        if value < bits[0]:
            raise ConfigError(
                f"{name}={value}: no average can be below the fewest bits, {bits[0]}: give a larger {name}, or fewer "
                f"bits to choose from"
            )


@dataclass(frozen=True, kw_only=True)
class SiteSensitivity:
    """What rounding one site alone does.

    Attributes:
        name: Path of a quantizer, as the report has it.
        role: Its role.
        keys: What rules tell its quantizers by: module, role and op.
        quantizers: How many share the bits.
        elements: What they round on the data; of a weight, what it has.
        given: Whether that is an argument, see :class:`dqconvert.bits.AverageBits`.
        loss: By bits, the distance of the outputs to the float model's when this site alone is rounded.
    """

    name: str
    role: str
    keys: tuple[Key, ...]
    quantizers: int
    elements: int
    given: bool
    loss: Mapping[int, float]

    def weight(self, count: Count) -> int:
        """Returns how much it counts in an average."""
        return self.quantizers if count == "quantizers" else 0 if count == "hidden" and self.given else self.elements


@dataclass(frozen=True, kw_only=True, repr=False)
class BitSensitivity:
    """The sensitivity of each site at each width; prints as a table. :meth:`search` makes configs of it.

    Attributes:
        model: The name of the model's class.
        qconfig: The config whose bits are chosen.
        bits: The widths tried.
        sites: The sites, in the order of the report.
        measure: ``"KL"``: the mean divergence of the softmax of a row from the float model's, in nats; or ``"error"``:
            the squared error over the squares of the float model's outputs.
        batches: How many calls were measured on.
        unreached: Quantizers that the data did not reach: their bits stay those of ``qconfig``.
        kept: Rules of ``qconfig`` that say something of other values.
    """

    model: str
    qconfig: QConfig
    bits: tuple[int, ...]
    sites: tuple[SiteSensitivity, ...]
    measure: str
    batches: int
    unreached: tuple[str, ...] = ()
    kept: tuple[Rule, ...] = ()

    def choose(self, budget: float, *, weights: float | None = None, count: Count = "elements") -> dict[str, int]:
        """Returns the bits of each site, by name, that lose least while averages are within a budget.

        The loss of a choice is taken to be the sum of the losses of each site by itself.

        Args:
            budget: The most average bits of activations, and of weights, each by itself.
            weights: Of weights, if it is another.
            count: What averages count: ``"elements"``; ``"hidden"``, without the model's inputs; ``"quantizers"``, each
                once.

        Raises:
            ConfigError: If a budget is no number, or less than the fewest bits; or ``count`` is none of these.

        Source:
            Yao et al., *HAWQ-V3*, ICML 2021, section 3.4 (an integer program); Cai et al., *ZeroQ*, CVPR 2020, section
            3.2 (the divergence of each layer rounded alone).
        """
        check_budget(budget, weights, count, self.bits)
        chosen: dict[str, int] = {}
        for most, is_weight in ((budget, False), (budget if weights is None else weights, True)):
            sites = [site for site in self.sites if (site.role == "weight") == is_weight]
            sizes = [site.weight(count) for site in sites]
            costs = [[bits * size for bits in self.bits] for size in sizes]
            losses = [[site.loss[bits] for bits in self.bits] for site in sites]
            capacity = math.floor(min(most, max(self.bits)) * sum(sizes) + 1e-6)
            options = knapsack(costs, losses, capacity)
            chosen |= {site.name: self.bits[option] for site, option in zip(sites, options, strict=True)}
        return {site.name: chosen[site.name] for site in self.sites}

    def search(self, budget: float, *, weights: float | None = None, count: Count = "elements") -> QConfig:
        """Returns ``qconfig`` with a rule for each site that gives it the bits of :meth:`choose`."""
        return self.config(self.choose(budget, weights=weights, count=count))

    def config(self, chosen: Mapping[str, int]) -> QConfig:
        """Returns ``qconfig`` with a rule for each site that gives it its bits.

        Args:
            chosen: The bits of each site, by name.
        """
        bits = {key: chosen[site.name] for site in self.sites for key in site.keys}
        return config_with(self.qconfig, bits, self.kept)

    def loss(self, chosen: Mapping[str, int]) -> float:
        """Returns the sum of the losses of a choice."""
        return sum(site.loss[chosen[site.name]] for site in self.sites)

    def average(self, chosen: Mapping[str, int]) -> AverageBits:
        """Returns the average bits of a choice, as :func:`dqconvert.average_bits` would count them on this data."""
        counted = (
            Counted(site.name, chosen[site.name], site.elements, site.quantizers, site.role == "weight", site.given)
            for site in self.sites
        )
        return averages_of(counted, self.unreached)

    # -- what there is to see --------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but configs as plain data for JSON."""
        plain = {"model": self.model, "bits": list(self.bits), "measure": self.measure, "batches": self.batches}
        sites = [{**asdict(site), "keys": [key._asdict() for key in site.keys]} for site in self.sites]
        return {**plain, "sites": sites, "unreached": list(self.unreached)}

    def table(self, chosen: Mapping[str, int] | None = None) -> Table:
        """Returns the table to print: a row for each site; ``chosen``: the bits by name, to mark."""
        table = Table(title=self._title(), title_justify="left", caption=self._caption(), caption_justify="left")
        for number, name in enumerate(self._columns(chosen)):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in self._rows(chosen):
            table.add_row(*row)
        return table

    def _title(self) -> str:
        what = {"KL": "divergence of the outputs", "error": "relative squared error of the outputs"}[self.measure]
        return f"{self.model}: {what} with one value rounded, on {counted(self.batches, 'batch', 'batches')}"

    def _caption(self) -> str | None:
        return f"not reached by the data: {listed(self.unreached, most=3)}" if self.unreached else None

    def _columns(self, chosen: Mapping[str, int] | None) -> list[str]:
        return ["value", "elements", *(f"{bits} bits" for bits in self.bits), *([] if chosen is None else ["chosen"])]

    def _rows(self, chosen: Mapping[str, int] | None) -> list[list[str]]:
        rows = []
        for site in self.sites:
            losses = [f"{site.loss[bits]:.2g}" for bits in self.bits]
            last = [] if chosen is None else [str(chosen[site.name])]
            rows.append([site.name, f"{site.elements:,}", *losses, *last])
        return rows

    def __repr__(self) -> str:
        return (
            f"<BitSensitivity of {self.model}: {counted(len(self.sites), 'value')} at {list(self.bits)} bits; print it>"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        return notebook.table(self._title(), self._columns(None), self._rows(None))
