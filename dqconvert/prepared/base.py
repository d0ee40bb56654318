"""The base of prepared modules: graphs, the fused graphs that run for them, and the report on both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Graph

from dqconvert.advice import log_empty_ranges
from dqconvert.fuse import Fused, fuse_method
from dqconvert.kernels.memory import Memory
from dqconvert.prepared.boundary import Boundary, bounded
from dqconvert.prepared.undo import Before, forget_keepers
from dqconvert.qconfig import QConfig, RuleLedger
from dqconvert.quant import FakeQuantize
from dqconvert.quant.memo import Memo, share_memory
from dqconvert.report import Fusion, PreparedMethod, Report
from dqconvert.rewrite.known import Known
from dqconvert.rewrite.place import Quantizers
from dqconvert.rewrite.rewrite import Rewritten, rewrite
from dqconvert.trace import Island
from dqconvert.trace.check import Check
from dqconvert.trace.doors import DoorModule
from dqconvert.trace.hooks import call_hook
from dqconvert.trace.method import Method, words_of
from dqconvert.trace.unchanged import checks
from dqconvert.words import listed

DEFERRED = "named, traced at its first call"
"""How the report says that a named method had no inputs yet."""

NOTHING = "has nothing to quantize"
"""Why the user's code of a method runs that has a graph, as integer files need it."""


class PreparedBase(DoorModule):
    """The graphs of a prepared module, and the graph that runs for each.

    Attributes:
        qconfig: The config it was prepared with.
        report: What was inserted where, and what runs as one operator.
        float_graphs: The float graphs (training, and evaluation where it differs), to prepare it again from.
        graph_method: The method of the user's class that ``graph`` stands for.
        called_method: The method that calling the module runs.
        more_methods: The graphs of other methods, and of calls on other forms of arguments.
        own_code: Methods that no graph can hold, and why: they run the user's code, in which layers are prepared each
            for itself.
        plain_methods: Graphs of methods that have nothing to quantize. They run the user's code; integer files, which
            have none, hold these.
        islands: Modules kept whole, and why.
        fuse: Whether groups of nodes run as one operator each. ``graph`` is the graph before that; after changing this
            call ``recompile()``.
        user_fuse: The attribute of that name that the user's class has, where the model is a message-passing layer.
    """

    qconfig: QConfig
    _noted: Report
    float_graphs: tuple[Graph, Graph | None]
    plain_methods: tuple[Method, ...] = ()
    islands: tuple[Island, ...]
    fuse: bool = True
    user_fuse: Any = None
    _agreement: str = ""
    _fused: Mapping[Graph, Fused] = {}
    _form: ClassVar[str] = "prepared"

    def all_methods(self) -> Iterator[Method]:
        """Yields every graph of the module; first the one that is ``graph``."""
        yield Method(
            name=self.graph_method,
            graph=self._graph,
            eval_graph=self.eval_graph,
            source=self.float_graphs,
            islands=self.islands,
            how="named",
        )
        yield from self.more_methods

    # -- what runs -------------------------------------------------------------------------------------------------

    def recompile(self) -> Any:
        """Fuses the graphs again and generates the code of each, after one was edited or ``fuse`` was switched."""
        self._fuse_all()
        return self._write_code()

    def _fuse_all(self) -> None:
        found: dict[Graph, Fused] = {}
        for number, method in enumerate(self.all_methods()):
            found |= fuse_method(method, self, number, groups=self.fuse)
        type(self)._fused = found

    def _write_code(self) -> Any:
        if not self._fused:  # a copy, or from a file: graphs alone
            self._fuse_all()
        return super()._write_code()

    def _runs(self, graph: Graph) -> Graph:
        share_memory(self)
        for _, quantizer in self.quantizers():
            quantizer.bind(self)
        return self._fused[graph].graph

    def _bounded(self, forward: Callable[..., Any], graph: Graph, runs: Graph) -> Callable[..., Any]:
        return bounded(forward, Boundary(graph, runs))

    def _inserted(self, module: nn.Module) -> bool:
        return isinstance(module, Quantizers | FakeQuantize | Memo)

    def _before(self, part: nn.Module) -> Before | None:
        return None if torch.compiler.is_compiling() else Before.of(self, part)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Switches modes as the model does; the first evaluation after training warns of ranges that it left empty."""
        trained = self.training
        result = super().train(*args, **kwargs)
        if trained and not self.training and not torch.compiler.is_compiling():
            log_empty_ranges(self)
        return result

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Loads a state; warns where it has other weights and not the ranges that belong to them."""
        kept = [
            path for path, one in self.quantizers() if one.is_observed() and f"{prefix}{path}.min_val" not in state_dict
        ]
        own = ((f"{prefix}{name}", parameter) for name, parameter in self.named_parameters()) if kept else ()
        if any(name in state_dict and not _equal(state_dict[name], parameter) for name, parameter in own):
            warnings.warn(
                f"load_state_dict: the state has other weights than this {self.report.model}, and no ranges of "
                f"{listed(kept, most=3)}: they stay as they are, for the weights of before. Load weights before ranges "
                f"are observed; or quantizer.reset() for _, quantizer in module.quantizers(), and dqconvert.calibrate.",
                stacklevel=4,
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # -- what there is to say of it --------------------------------------------------------------------------------

    @property
    def report(self) -> Report:
        """The report: the inserted quantizers, and the groups of nodes that run as one operator."""
        return replace(self._noted, fusions=self.fusions, agreement=self._agreement).of(self)

    @property
    def graph_memory(self) -> Memory:
        """The results kept of the graphs that the module was given: orders of edges, norms, degrees.

        It is neither saved nor copied; ``clear()`` frees it, and its ``results`` and ``size`` bound it.
        """
        return share_memory(self)

    @property
    def fusions(self) -> tuple[Fusion, ...]:
        """The groups of nodes that run as one operator; none where ``fuse`` is off."""
        fused = (self._fused.get(method.graph) for method in self.all_methods())
        return tuple(fusion for one in fused if one is not None for fusion in one.fusions)

    def quantizers(self) -> Iterator[tuple[str, FakeQuantize]]:
        """Yields path and module of every :class:`~dqconvert.quant.FakeQuantize`, in the order of registration."""
        for path, module in self.named_modules():
            if isinstance(module, FakeQuantize):
                yield path, module


def _equal(new: Any, old: Tensor) -> bool:
    return isinstance(new, Tensor) and new.shape == old.shape and torch.equal(new.to(old), old)


def rewrite_more(
    module: PreparedBase, method: Method, ledger: RuleLedger | None = None, products: tuple[Island, ...] = ()
) -> Rewritten:
    """Rewrites the float graphs of one more method of a prepared module, whose quantizers it shares.

    Args:
        module: The module; it gets the quantizers that are new.
        method: The graphs; they are used up.
        ledger: Keeps account of the rules, for a caller who checks them afterwards.
        products: Layers whose messages the graphs cannot show.

    Returns:
        What :func:`add_rewritten` takes, or :func:`keep_plain` if there is nothing to quantize.
    """
    known = Known(module, module.report.entries, (graph for one in module.all_methods() for graph in one.graphs()))
    before = set(dict(module.named_modules()))
    rewritten = rewrite(method, module, ledger or RuleLedger(module.qconfig), known=known, products=products)
    if rewritten.found:
        forget_keepers(module)
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        for path, child in module.named_modules():
            if path not in before:
                child.to(device)
    return rewritten


def fuse_more(module: PreparedBase, rewritten: Rewritten) -> dict[Graph, Fused]:
    """Fuses one more method of a prepared module, as :func:`dqconvert.fuse.fuse_method` does, if it fuses at all."""
    return fuse_method(rewritten.method, module, len(list(module.all_methods())), groups=module.fuse)


def add_rewritten(
    module: PreparedBase, rewritten: Rewritten, fused: Mapping[Graph, Fused], remarks: tuple[str, ...] = ()
) -> None:
    """Gives a prepared module one more method.

    Args:
        rewritten: From :func:`rewrite_more`.
        fused: From :func:`fuse_more`.
        remarks: What the report is to say.
    """
    type(module)._fused = {**module._fused, **fused}
    module._noted = extended(module._noted, rewritten, remarks)
    module.add_method(rewritten.method)


def keep_plain(module: PreparedBase, method: Method) -> None:
    """Gives a prepared module the graph of a method that has nothing to quantize; the user's code goes on to run.

    A graph that runs hooks is not kept: they are the user's code, too.
    """
    module.own_code = {**module.own_code, method.name: NOTHING}
    if not any(node.target is call_hook for graph in method.graphs() for node in graph.nodes):
        Check(module, checks(method.graphs()))  # remembers what it read
        module.plain_methods = (*module.plain_methods, replace(method, how=NOTHING))


def quantized_parameters(module: PreparedBase) -> set[str]:
    """Returns the names of the parameters that graphs quantize."""
    calls = (node for one in module.all_methods() for node in one.graph.nodes if node.op == "call_module" and node.args)
    return {str(node.args[0].target) for node in calls if getattr(node.args[0], "op", "") == "get_attr"}


def note_agreement(module: PreparedBase, words: str) -> None:
    """Has the report say how near the module is to the model without rounding, as far as that is known."""
    module._agreement = words


def note_bits(module: PreparedBase, words: str) -> None:
    """Has the report say how wide codes are on average, as far as that was counted."""
    module._noted = replace(module._noted, average_bits=words)


def defer_method(module: PreparedBase, name: str) -> None:
    """Reports that a method was named, and is to be traced at its first call."""
    entry = PreparedMethod(name=name, arguments="", how=DEFERRED)
    module._noted = replace(module._noted, methods=(*module._noted.methods, entry))


def run_own_code(module: PreparedBase, why: Mapping[str, str]) -> None:
    """Has methods run the user's code in spite of their graphs; ``why``: by name, the reason for the report."""
    module.own_code = {**module.own_code, **why}
    methods = module._noted.methods
    noted = (replace(one, how=f"own code: {why[one.name]}") if one.name in why else one for one in methods)
    module._noted = replace(module._noted, methods=tuple(noted))


def extended(report: Report, rewritten: Rewritten, remarks: tuple[str, ...]) -> Report:
    """Returns a report that says of one more method, too."""
    method = rewritten.method
    entry = PreparedMethod(name=method.name, arguments=words_of(method.graph), how=method.how)
    return replace(
        report,
        entries=(*report.entries, *rewritten.entries),
        left_float=tuple(dict.fromkeys((*report.left_float, *rewritten.left_float))),
        remarks=tuple(dict.fromkeys((*report.remarks, *remarks, *rewritten.remarks))),
        of_config=tuple(dict.fromkeys((*report.of_config, *rewritten.remarks))),
        protection=tuple(dict.fromkeys((*report.protection, *rewritten.protection))),
        methods=(*(m for m in report.methods if (m.name, m.how) != (method.name, DEFERRED)), entry),
    )
