"""Puts the quantizers that a config asks for at the sites of a graph."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from dqconvert.errors import ConfigError
from dqconvert.ops import op_named
from dqconvert.qconfig import KIND_OF_ROLE, QSpec, QuantizerSite, RuleLedger, required_arguments
from dqconvert.quant import FakeQuantize
from dqconvert.quant.fake_quantize import granularity_of
from dqconvert.report import Entry, LeftFloat
from dqconvert.rewrite.connectivity import ancestors, descendants
from dqconvert.rewrite.degrees import Degrees
from dqconvert.rewrite.follow import last_of
from dqconvert.rewrite.known import Known
from dqconvert.rewrite.protect import Masks
from dqconvert.rewrite.sites import Site
from dqconvert.rewrite.spaces import Level, RowSpaces
from dqconvert.trace.note import annotate, note_of
from dqconvert.words import kind_of


class Quantizers(nn.Module):
    """Holds the quantizers of one module of the model, by role: ``convs.0.quant.message``."""

    def reset_parameters(self) -> None:
        """Forgets all ranges: they belong to weights that no longer are."""
        for child in self.children():
            if isinstance(child, FakeQuantize):
                child.reset()


class Placer:
    """Decides on a quantizer for each site and inserts it.

    Args:
        root: The module that takes the quantizers.
        ledger: Applies the config's rules and remembers which matched.
        training: The placer of the training graph, whose quantizers this evaluation graph shares; ``None`` for a
            training graph.
        known: The quantizers that other methods' graphs have; this one shares those that are on the same values.

    Attributes:
        placed: The quantizers that the graph calls, by path.
        names: Their paths, by module, role, and which of those it is.
        entries: Those that are new.
        left_float: What stays in float.
        remarks: What else the report is to say.
        quantized: For a node whose value all users see quantized, the node of its quantizer.
    """

    def __init__(
        self, root: nn.Module, ledger: RuleLedger, training: Placer | None = None, known: Known | None = None
    ) -> None:
        self.root = root
        self.ledger = ledger
        self.training = training
        self.known = known
        self.names: dict[tuple[str, str, int], str] = {}
        self.placed: dict[str, nn.Module] = {}
        self.entries: list[Entry] = []
        self.left_float: list[LeftFloat] = []
        self.remarks: list[str] = []
        self._count: Counter[tuple[str, str]] = Counter()
        self.quantized: dict[Node, Node] = {}
        self._shared: dict[tuple[Node, Any], Node] = {}
        self._degrees: dict[int, Degrees] = {}
        self._per_tensor: dict[int, str] = {}

    def place(self, graph: Graph, sites: list[Site], masks: Masks | None, rows: RowSpaces) -> None:
        """Inserts quantizers for all sites, in place."""
        found = list(self._wanted(sites))
        self._check_shared(sites, found)
        wanted = [(site, self._served(graph, rows, site, spec)) for site, spec in found]
        first = {(site.value, spec) if site.user is not None else site.value: site for site, spec in reversed(wanted)}
        placed = {id(site) for site in first.values()}
        same = {} if self.known is None else self.known.match([site for site, _ in wanted if id(site) in placed])
        results = frozenset() if self.ledger.qconfig.output else results_of(graph, sites)
        for site, spec in wanted:
            if id(site) in results and id(site) not in same:
                self._leave(site, "a result of the model, which output=False leaves in float")
                continue
            shared = self._shared.get((site.value, spec)) if site.user is not None else None
            if shared is not None:
                self._redirect(site, shared)
                continue
            path = self._path(site, same.get(id(site)))
            if self.training is not None and path not in self.training.placed:
                self._leave(site, "reached in evaluation only, so training never sets its range")
                continue
            quantizer = self._quantizer(site, spec, path, rows)
            self.placed[path] = quantizer
            node = self._insert(graph, site, path, masks, rows)
            if site.user is not None:
                self._shared[site.value, spec] = node
            if id(site) not in same:
                self.entries.append(self._entry(site, spec, path))

    def _wanted(self, sites: list[Site]) -> Iterator[tuple[Site, Any]]:
        """Yields the sites that take a quantizer, and its spec."""
        for site in sites:
            level = site.rule_level.value
            spec, rule = self.ledger.resolve(module=site.module, role=site.role, op=site.op, level=level)
            if spec is None:
                self._leave(site, "by the config" if rule is None else f"by rules[{rule}]")
            elif self.known is not None and self.known.arrives_rounded(site):
                self._leave(site, "an argument that another layer rounded, as where the model calls this one")
            else:
                yield site, spec

    def _served(self, graph: Graph, rows: RowSpaces, site: Site, spec: Any) -> Any:
        """Returns a spec, per tensor where it asks for a range per channel or group and has none."""
        if not isinstance(spec, QSpec) or spec.granularity == "tensor":
            return spec
        if spec.granularity == "degree":
            groups = self._groups_of(graph, rows, site, spec)
            if isinstance(groups, Node):
                return spec
            self._per_tensor[id(site)] = groups
        elif len(note_of(site.value).sizes[0]) != 1:
            return spec
        else:
            what = "a vector" if site.level is Level.PARAMETER else "one number per row"
            self._per_tensor[id(site)] = f"{what} has no channels"
        return replace(spec, granularity="tensor", groups=None)

    def _groups_of(self, graph: Graph, rows: RowSpaces, site: Site, spec: QSpec) -> Node | str:
        count = spec.groups_value
        assert count is not None
        if count not in self._degrees:
            self._degrees[count] = Degrees(graph, rows, count)
        return self._degrees[count].of_site(site)

    def _check_shared(self, sites: list[Site], wanted: list[tuple[Site, Any]]) -> None:
        """Raises if what several layers read of one dropout is to be rounded before it in different ways."""
        specs = {id(site): spec for site, spec in wanted}
        found: dict[tuple[Node, Node | None], Site] = {}
        for site in sites:
            other = found.setdefault((site.value, site.user), site)
            if site.role == "input" and specs.get(id(site)) != specs.get(id(other)):
                raise ConfigError(
                    f"the inputs of {other.module!r} and {site.module!r} are one value behind one dropout, to be "
                    f"quantized in different ways: with placement='before_dropout' one rule must hold for both."
                )

    def quantizers_before(self, nodes: Iterable[Node]) -> set[Node]:
        """Returns the calls of quantizers that some values were computed through."""
        every = {before for node in nodes for before in ancestors(node)}
        return {node for node in every if node.op == "call_module" and node.target in self.placed}

    # -- names and modules -----------------------------------------------------------------------------------------

    def _path(self, site: Site, same: str | None) -> str:
        number = self._count[site.module, site.role]
        self._count[site.module, site.role] += 1
        key = (site.module, site.role, number)
        if self.training is not None and key in self.training.names:
            return self.training.names[key]
        path = same or self._name(site, number)
        while same is None and self.known is not None and (path in self.known.paths or path in self.placed):
            number += 1
            path = self._name(site, number)
        self.names[key] = path
        return path

    def _name(self, site: Site, number: int) -> str:
        container = container_name(self.root.get_submodule(site.module))
        name = f"{container}.{site.role}" + (f"_{number}" if number else "")
        return f"{site.module}.{name}" if site.module else name

    def _quantizer(self, site: Site, spec: Any, path: str, rows: RowSpaces) -> nn.Module:
        if self.training is not None or (self.known is not None and path in self.known.paths):
            shared = self.root.get_submodule(path)
            from_zero = isinstance(shared, FakeQuantize) and shared.from_zero
            if from_zero and site.user is None and isinstance(spec, QSpec) and site.signed(spec):
                self._cuts(site, path)
            return shared
        if isinstance(spec, QSpec):
            quantizer: nn.Module = self._fake_quantize(site, spec, path)
        else:
            quantizer = spec(self._public(site, path, rows)) if required_arguments(spec) else spec()
            if not isinstance(quantizer, nn.Module):
                raise ConfigError(f"the factory {spec!r} for {path} returned {kind_of(quantizer)}, not a module")
        attach(self.root, path, quantizer)
        return quantizer

    def _public(self, site: Site, path: str, rows: RowSpaces) -> QuantizerSite:
        """Returns what a user's factory is told of a site."""
        dim, channels = _channels(site)
        return QuantizerSite(
            path=path,
            module=site.module,
            role=site.role,  # type: ignore[arg-type]
            kind=KIND_OF_ROLE[site.role],
            op=site.op,
            level=site.level.value,
            row_dim=site.row_dim,
            signed=not (site.nonnegative or site.cut),
            protected=self._protected(site),
            degrees=site.level in (Level.NODE, Level.EDGE) and bool(rows.targets),
            channels=(channels, dim),
        )

    def _cuts(self, site: Site, path: str) -> None:
        """Says that a quantizer whose value fed only ReLUs is on a value that does not."""
        what = f"{path} cuts what is below zero, as signed='graph' found that only ReLUs read it"
        remedy = f"Rule(module={site.module!r}, role={site.role!r}, spec=QSpec(signed=None, …)) keeps it"
        if self.training is not None:
            raise ConfigError(f"{what} in training; in evaluation something else does ({site.source}): {remedy}.")
        here = f"where its value goes on to no ReLU here ({site.source})"
        remark = f"{what} in the methods prepared before; {here}, {remedy}"
        self.remarks.append(remark)
        warnings.warn(remark, stacklevel=2)

    def _fake_quantize(self, site: Site, spec: QSpec, path: str) -> FakeQuantize:
        channel_dim, channels = _channels(site)
        return FakeQuantize(
            spec,
            name=path,
            signed=site.signed(spec),
            channels=channels,
            channel_dim=channel_dim,
            row_dim=site.row_dim,
            noise=self.ledger.qconfig.noise,
            behind=site.behind,
        )

    # -- graph -----------------------------------------------------------------------------------------------------

    def _insert(self, graph: Graph, site: Site, path: str, masks: Masks | None, rows: RowSpaces) -> Node:
        quantizer = self.placed[path]
        mask = masks.of(site.value) if masks is not None and self._protected(site) else None
        groups: Node | str | None = None
        if isinstance(quantizer, FakeQuantize) and quantizer.grouped:
            groups = self._groups_of(graph, rows, site, quantizer.spec)
            if not isinstance(groups, Node):
                raise ConfigError(
                    f"{path} has a range for each group of in-degrees, which this computation does not know "
                    f"({groups}): give it granularity='tensor' by a rule, or call the model as a whole"
                )
        last = last_of(graph, [node for node in (site.value, mask, groups) if isinstance(node, Node)])
        own = not isinstance(quantizer, FakeQuantize)  # a user's quantizer takes both arguments always
        arguments: tuple[Any, ...] = (site.value, mask) if own or mask is not None or groups else (site.value,)
        arguments += (groups,) if groups is not None else ()
        if site.user is None:
            with graph.inserting_after(last):
                node = graph.create_node("call_module", path, arguments)
            site.value.replace_all_uses_with(node, delete_user_cb=lambda user: user is not mask and node < user)
            self.quantized[site.value] = node
        else:
            with graph.inserting_before(site.user):
                node = graph.create_node("call_module", path, arguments)
            self._redirect(site, node)
        return annotate(node, note_of(site.value))

    def _protected(self, site: Site) -> bool:
        protect = self.ledger.qconfig.protect
        return site.protected and protect is not None and protect.covers(site.role)

    def _redirect(self, site: Site, node: Node) -> None:
        assert site.user is not None
        site.user.replace_input_with(site.value, node)

    # -- report ----------------------------------------------------------------------------------------------------

    def _entry(self, site: Site, spec: Any, path: str) -> Entry:
        own = spec if isinstance(spec, QSpec) else None
        return Entry(
            path=path,
            module=site.module,
            role=site.role,
            kind=KIND_OF_ROLE[site.role],
            level=site.level.value,
            rule_level=site.rule_level.value,
            op=site.op,
            source=site.source,
            bits=own.bits if own else None,
            signed=site.signed(own) if own else None,
            scheme=self._scheme(own, self._per_tensor.get(id(site))) if own else getattr(spec, "__name__", repr(spec)),
            protected=self._protected(site),
        )

    def _scheme(self, spec: QSpec, why: str | None) -> str:
        granularity = f"per {granularity_of(spec)}" + (f" ({why})" if why else "")
        parts = ["symmetric" if spec.symmetric else "affine", granularity, spec.range, spec.grad]
        parts += ["rounded stochastically"] if spec.rounding == "stochastic" else []
        noise = self.ledger.qconfig.noise
        return ", ".join([*parts, *([] if noise is None else [f"noise {noise:g}"])])

    def _leave(self, site: Site, why: str) -> None:
        self.left_float.append(
            LeftFloat(what=f"{site.module or 'the root module'}: {site.role}", reason=why, source=site.source)
        )


def results_of(graph: Graph, sites: list[Site]) -> frozenset[int]:
    """Returns the ids of the sites of a model's results: of weighted ops and layers, with none of either behind."""
    last = next(node for node in graph.nodes if node.op == "output")
    values = {site.value for site in sites if site.role != "update"}
    found = set()
    for site in sites:
        behind = descendants(site.value)
        if site.role in ("feature", "update") and last in behind and not values & behind:
            found.add(id(site))
    return frozenset(found)


def container_name(module: nn.Module) -> str:
    """Returns the attribute that holds a module's quantizers: ``quant``, or where the user has one, ``quant_``."""
    name = "quant"
    while hasattr(module, name) and not isinstance(getattr(module, name), Quantizers):
        name += "_"
    return name


def attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Registers a module under a path whose last but one part is a :class:`Quantizers` container."""
    owner_path, container, name = ("." + path).rsplit(".", 2)
    owner = root.get_submodule(owner_path.lstrip("."))
    if not isinstance(getattr(owner, container, None), Quantizers):
        owner.add_module(container, Quantizers().train(owner.training))
    getattr(owner, container).add_module(name, module.train(owner.training))


def _channels(site: Site) -> tuple[int, int]:
    """Returns the dimension and the number of channels: a weight's outputs (first), an activation's features (last)."""
    size = note_of(site.value).sizes[0]
    if not size:
        return 0, 1
    if site.role == "weight":
        transposed = op_named(site.op.rsplit(".", 1)[-1]).columns_last
        dim = len(size) - 1 if transposed else 0
    else:
        dim = len(size) - 1
    return dim, size[dim]
