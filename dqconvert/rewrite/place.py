"""Puts the quantizers that a config asks for at the sites of a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from dqconvert.errors import ConfigError
from dqconvert.qconfig import KIND_OF_ROLE, QSpec, RuleLedger
from dqconvert.quant import FakeQuantize
from dqconvert.report import Entry, LeftFloat
from dqconvert.rewrite.protect import Masks, last_of
from dqconvert.rewrite.roles import Site
from dqconvert.rewrite.spaces import ancestors
from dqconvert.trace.note import annotate, note_of


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
        known: Quantizers placed in another graph of the same model, by path; this graph shares them. ``None`` for
            the first graph.

    Attributes:
        placed: Quantizers by path.
        quantized: For a node whose value all users see quantized, the node of its quantizer.
    """

    def __init__(self, root: nn.Module, ledger: RuleLedger, known: dict[str, nn.Module] | None = None) -> None:
        self.root = root
        self.ledger = ledger
        self.known = known
        self.placed: dict[str, nn.Module] = {}
        self.entries: list[Entry] = []
        self.left_float: list[LeftFloat] = []
        self._count: Counter[tuple[str, str]] = Counter()
        self.quantized: dict[Node, Node] = {}
        self._shared: dict[tuple[Node, Any], Node] = {}

    def place(self, graph: Graph, sites: list[Site], masks: Masks | None) -> None:
        """Inserts quantizers for all sites, in place."""
        for site in sites:
            spec, rule = self.ledger.resolve(module=site.module, role=site.role, op=site.op)
            if spec is None:
                why = "by the config" if rule is None else f"by rules[{rule}]"
                self._leave(site, why)
                continue
            shared = self._shared.get((site.value, spec)) if site.user is not None else None
            if shared is not None:
                self._redirect(site, shared)
                continue
            path = self._path(site)
            if self.known is not None and path not in self.known:
                self._leave(site, "reached in evaluation only, so training never sets its range")
                continue
            quantizer = self._quantizer(site, spec, path)
            self.placed[path] = quantizer
            node = self._insert(graph, site, path, masks)
            if site.user is not None:
                self._shared[site.value, spec] = node
            self.entries.append(self._entry(site, spec, path))

    def quantizers_before(self, nodes: Iterable[Node]) -> set[Node]:
        """The quantizers that these values come through."""
        every = {before for node in nodes for before in ancestors(node)}
        return {node for node in every if node.op == "call_module" and node.target in self.placed}

    # -- names and modules -----------------------------------------------------------------------------------------

    def _path(self, site: Site) -> str:
        number = self._count[site.module, site.role]
        self._count[site.module, site.role] += 1
        container = container_name(self.root.get_submodule(site.module))
        name = f"{container}.{site.role}" + (f"_{number}" if number else "")
        return f"{site.module}.{name}" if site.module else name

    def _quantizer(self, site: Site, spec: Any, path: str) -> nn.Module:
        if self.known is not None:
            return self.known[path]
        if isinstance(spec, QSpec):
            quantizer: nn.Module = self._fake_quantize(site, spec, path)
        else:
            quantizer = spec()
            if not isinstance(quantizer, nn.Module):
                raise ConfigError(
                    f"the factory {spec!r} for {path} returned a {type(quantizer).__name__}, not a module"
                )
        attach(self.root, path, quantizer)
        return quantizer

    def _fake_quantize(self, site: Site, spec: QSpec, path: str) -> FakeQuantize:
        channel_dim, channels = _channels(site)
        return FakeQuantize(
            spec,
            name=path,
            signed=spec.signed_for(role=site.role, nonnegative=site.nonnegative),
            channels=channels,
            channel_dim=channel_dim,
            row_dim=site.row_dim,
        )

    # -- graph -----------------------------------------------------------------------------------------------------

    def _insert(self, graph: Graph, site: Site, path: str, masks: Masks | None) -> Node:
        mask = masks.of(site.value) if masks is not None and site.protected else None
        last = last_of(graph, [site.value] if mask is None else [site.value, mask])
        own = not isinstance(self.placed[path], FakeQuantize)  # a user's quantizer takes both arguments always
        arguments = (site.value, mask) if own or mask is not None else (site.value,)
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

    def _redirect(self, site: Site, node: Node) -> None:
        assert site.user is not None
        site.user.replace_input_with(site.value, node)

    # -- report ----------------------------------------------------------------------------------------------------

    def _entry(self, site: Site, spec: Any, path: str) -> Entry:
        own = spec if isinstance(spec, QSpec) else None
        signed = own.signed_for(role=site.role, nonnegative=site.nonnegative) if own else None
        return Entry(
            path=path,
            module=site.module,
            role=site.role,
            kind=KIND_OF_ROLE[site.role],
            level=site.level.value,
            op=site.op,
            source=site.source,
            bits=own.bits if own else None,
            signed=signed,
            scheme=_scheme(own) if own else getattr(spec, "__name__", repr(spec)),
            protected=site.protected,
        )

    def _leave(self, site: Site, why: str) -> None:
        self.left_float.append(
            LeftFloat(what=f"{site.module or 'the root module'}: {site.role}", reason=why, source=site.source)
        )


def container_name(module: nn.Module) -> str:
    """The attribute that holds a module's quantizers: ``quant``, or where the user has one, ``quant_``."""
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
    """Per-channel means: a weight's output channels (first dimension), an activation's features (last dimension)."""
    size = note_of(site.value).sizes[0]
    if not size:
        return 0, 1
    if site.role == "weight":
        transposed = site.op.rsplit(".", 1)[-1] in ("matmul", "mm", "bmm", "spmm")
        dim = len(size) - 1 if transposed else 0
    else:
        dim = len(size) - 1
    return dim, size[dim]


def _scheme(spec: QSpec) -> str:
    parts = ["symmetric" if spec.symmetric else "affine", f"per {spec.granularity}", spec.range, spec.grad]
    return ", ".join(parts)
