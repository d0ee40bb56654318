"""``method=`` of :func:`dqconvert.prepare`: which methods of a model to prepare, and on which inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dqconvert.errors import ConfigError, TraceError
from dqconvert.prepared import PreparedModule
from dqconvert.prepared.assemble import DEFERRED, add_method, rewrite
from dqconvert.qconfig import QConfig, RuleLedger
from dqconvert.report import PreparedMethod
from dqconvert.trace import trace
from dqconvert.trace.copies import working_copy
from dqconvert.trace.inputs import Inputs, bind, from_bound, method_of, signature_of
from dqconvert.trace.leaves import uninitialized
from dqconvert.trace.tracer import preserved_random_state, run_once


@dataclass(frozen=True)
class Methods:
    """The methods to prepare.

    Attributes:
        inputs: By name, the one that ``module.graph`` is of first; ``None``: made up, or those of the first call.
        called: The one that calling the module runs.
    """

    inputs: dict[str, Any]
    called: str

    @property
    def first(self) -> str:
        """The one that ``module.graph`` is of."""
        return next(iter(self.inputs))


def methods_of(model: nn.Module, method: Any, example_inputs: Any) -> Methods:
    """Reads what ``prepare`` was given.

    Raises:
        ConfigError: If it is neither a name, nor several, nor a dict of name to inputs.
        TraceError: If the model has no such method.

    Example:
        >>> from torch_geometric.nn import GAE, GCNConv
        >>> methods_of(GAE(GCNConv(8, 4)), ("encode", "decode"), None).called
        'forward'
    """
    if isinstance(method, str):
        signature_of(model, method)
        return Methods({method: example_inputs}, method)
    if isinstance(method, Mapping):
        if example_inputs is not None:
            raise ConfigError("method= is a dict of name to inputs: leave example_inputs= out.")
        inputs = dict(method)
    elif isinstance(method, Sequence) and method:
        inputs = dict.fromkeys(method)
    else:
        raise ConfigError(
            f"method= takes a method's name, several, or a dict of name to example inputs, got {method!r}."
        )
    for name in inputs:
        if not isinstance(name, str):
            raise ConfigError(f"method= takes names of methods, got {name!r}.")
        method_of(model, name)
    own = type(model).forward is not nn.Module.forward
    called = "forward" if own or "forward" in inputs else next(iter(inputs))
    first = "forward" if "forward" in inputs else next(iter(inputs))
    ordered = {first: inputs[first], **inputs}
    if not isinstance(method, Mapping) and example_inputs is not None:
        ordered = _shared_out(model, ordered, example_inputs)
    return Methods(ordered, called)


def _shared_out(model: nn.Module, methods: dict[str, Any], example: Any) -> dict[str, Any]:
    """``example_inputs`` for several methods: a dict by method; or arguments of the first, and by name of others."""
    if isinstance(example, dict) and example and set(example) <= set(methods):
        return {name: example.get(name) for name in methods}
    first = next(iter(methods))
    if uninitialized(model):
        return {**methods, first: example}
    given = bind(model, first, example)
    return {name: given if name == first else _by_name(model, name, given) for name in methods}


def _by_name(model: nn.Module, name: str, given: Inputs) -> Inputs | None:
    """Another method's inputs, if all that it requires is among those given."""
    signature = signature_of(model, name)
    known = {key: given.arguments[key] for key in signature.parameters if key in given.given}
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not known or any(parameter.kind in stars for parameter in signature.parameters.values()):
        return None
    try:
        return from_bound(signature, signature.bind(**known))
    except TypeError:
        return None


def prepare_methods(
    model: nn.Module, methods: Methods, qconfig: QConfig, *, strict: bool = False, fuse: bool = True
) -> PreparedModule:
    """Traces and rewrites each method of a model into one prepared module.

    Args:
        model: The float model; it is not changed.
        methods: From :func:`methods_of`.
        qconfig: What to quantize, and how.
        strict: Raise where a submodule cannot be traced.
        fuse: Whether groups of nodes run as one operator each.

    Raises:
        ConfigError: If a rule of the config matches nothing.
        TraceError: If the model cannot be traced, or has nothing to quantize.
    """
    model = _with_shapes(model, methods)
    first, called = methods.first, methods.called
    found = trace(model, methods.inputs[first], method=first, strict=strict)
    ledger = RuleLedger(qconfig)
    module = rewrite(found, qconfig, first, fuse, called=called, ledger=ledger)
    keeping = {first: found.left} if first != "forward" else {}
    deferred = []
    for name, inputs in list(methods.inputs.items())[1:]:
        try:
            more = trace(model, inputs, method=name, strict=strict)
        except TraceError:
            if inputs is not None:
                raise
            deferred.append(PreparedMethod(name=name, arguments="", how=DEFERRED))
            continue
        graphs = (more.module.graph, more.module.eval_graph)
        added = add_method(
            module,
            graphs,
            name,
            "named",
            islands=more.islands,
            products=more.products,
            remarks=more.remarks,
            ledger=ledger,
        )
        if added is not None:
            keeping[name] = more.left
    ledger.check()
    own = {name: f"keeps something for later in {left[0]!r}" for name, left in keeping.items() if left}
    module.own_code = own
    remarks = module.report.remarks
    if called != "forward" and type(model).forward is not nn.Module.forward:
        remark = f"calling the module runs {called}, not the model's own forward: to keep that, pass a tuple of names"
        remarks = (*remarks, remark)
    module.report = replace(
        module.report,
        remarks=remarks,
        methods=tuple(
            replace(one, how=f"own code: {own[one.name]}") if one.name in own else one
            for one in (*module.report.methods, *deferred)
        ),
    )
    return module


def _with_shapes(model: nn.Module, methods: Methods) -> nn.Module:
    """The model, or a copy in which every method that has inputs settled the shapes of lazy layers."""
    if len(methods.inputs) == 1 or not uninitialized(model):
        return model
    with preserved_random_state():
        settled = working_copy(model)
        for name, inputs in methods.inputs.items():
            if inputs is not None:
                run_once(settled, name, bind(settled, name, inputs))
    for part, own in zip(settled.modules(), model.modules(), strict=True):
        part.training = own.training
    return settled
