"""First calls: a method without a graph is traced, rewritten and fused, or runs the user's own code.

Where a graph cannot hold what the method does (it loops over a loader, branches on values, keeps something for later),
the user's own code runs. The layers that it calls are doors again, each traced for itself, so that what they compute is
the prepared computation; that it multiplies by a weight itself, past them, is an error.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data.data import BaseData

from dqconvert.errors import DQConvertError, GuardError, InputError, TraceError
from dqconvert.prepared.base import (
    NOTHING,
    PreparedBase,
    add_rewritten,
    fuse_more,
    keep_plain,
    quantized_parameters,
    rewrite_more,
)
from dqconvert.prepared.float_view import float_view
from dqconvert.report import PreparedMethod
from dqconvert.trace import Trace, trace
from dqconvert.trace.adjacency import is_sparse
from dqconvert.trace.inputs import Inputs, from_bound, signature_of
from dqconvert.trace.leaves import uninitialized
from dqconvert.trace.parts import DoorCall
from dqconvert.trace.probe import probe
from dqconvert.trace.watch import Watch, watched

_lock = threading.RLock()
"""One method is traced at a time, of all modules: tracing changes names that all code uses."""


def first_call(host: PreparedBase, call: DoorCall, refusal: Exception | None = None) -> Any:
    """Answers a call that no graph is for; there is one afterwards, if a graph can hold what the method does.

    Args:
        call: The call of one of its methods, or of a method of one of its parts.
        refusal: Why the method's other graphs refused the call.

    Returns:
        What the method returns.

    Raises:
        InputError: The refusal, if it is one, where the user's code fails on these arguments, too.
        TraceError: If it is called while code is compiled, or multiplies by a quantized layer's weight itself.
        ArgumentError: If it has other graphs, and none can be made for these arguments.
    """
    door = call.door
    refused = "" if refusal is None else str(refusal)
    if call.user is None:
        raise TraceError(f"{host.report.model} has no method {door!r}.")
    if door in host.own_code:
        return _run_own_code(host, call, host.own_code[door], refusal)
    path = door.rpartition(".")[0]
    if path and any(f"{path}.".startswith(f"{whole}.") for whole in _whole(host)):
        return call.run_user()  # as the graphs call it: the report says that it stays in float, and why
    if torch.compiler.is_compiling():
        raise GuardError(f"{door} was not traced yet: call it once before it is compiled. {refused}")
    why: str | None = None
    with _lock:
        running = next((one for one in host._running.get(door, ()) if call.fits(one.graph)), None)
        if running is None:
            why = _prepare(host, call, refused)
            running = next((one for one in host._running.get(door, ()) if call.fits(one.graph)), None)
    if running is None:
        result = _run_own_code(host, call, why or "could not be traced on these arguments", refusal)
        # Not before, and of a door without a graph: odd arguments say nothing of the next ones.
        if why is not None and not host._running.get(door):
            with _lock:
                _note_own_code(host, door, why)
        return result
    return host.run_door(running, call)


def _whole(host: PreparedBase) -> Iterator[str]:
    """Yields the paths of the user's modules that graphs call as a whole."""
    for method in host.all_methods():
        yield from (island.module for island in method.islands)
        for graph in method.graphs():
            yield from (str(node.target) for node in graph.nodes if node.op == "call_module")


# -- tracing -------------------------------------------------------------------------------------------------------


def _prepare(host: PreparedBase, call: DoorCall, refused: str) -> str | None:
    """Traces the method of a call and gives the module its graph.

    Returns:
        Why a graph cannot hold it; ``None`` if it has one now, or if the method itself refuses these arguments.
    """
    door, args, kwargs = call.door, call.args, call.kwargs
    odd = next((value for value in _leaves((args, kwargs)) if not isinstance(value, _TRACEABLE)), None)
    if odd is not None:
        return f"takes a {type(odd).__name__}, which is no input of a graph"
    if not any(isinstance(value, Tensor | BaseData) or is_sparse(value) for value in _leaves((args, kwargs))):
        return None if refused else NOTHING
    with torch.inference_mode(False), torch.enable_grad():
        try:
            view = float_view(host)
            if lazy := uninitialized(view):
                return f"has parameters without shapes ({', '.join(lazy[:3])}): name it in prepare's method="
            inputs = _inputs(view, door, args, kwargs)
        except TypeError:  # the arguments do not fit the method, which is about to say so itself
            return None
        known = frozenset(island.module for method in host.all_methods() for island in method.islands)
        reason = probe(view, inputs, door, host.training, known)
        if reason is not None:
            return reason
        try:
            found = trace(view, inputs, method=door)
        except TraceError as error:
            return None if error.__cause__ is not None else str(error)
    new = [island for island in found.islands if island.module not in known]
    if new:
        return f"calls {new[0].module!r}, which {new[0].reason} ({new[0].source})"
    return _add(host, door, found, refused)


def _add(host: PreparedBase, door: str, found: Trace, refused: str) -> str | None:
    parameters = set(dict(host.named_parameters()))
    quantizers = {id(quantizer) for _, quantizer in host.quantizers()}
    method = found.method(door, "first call" if not refused else "first call in this form")
    rewritten = rewrite_more(host, method, products=found.products)
    if not rewritten.found:
        if not refused and not found.left:
            keep_plain(host, rewritten.method)
        return NOTHING
    add_rewritten(host, rewritten, fuse_more(host, rewritten), found.remarks)
    added = [quantizer for _, quantizer in host.quantizers() if id(quantizer) not in quantizers]
    calibrating = any(quantizer.calibrating for _, quantizer in host.quantizers())
    for quantizer in added:
        quantizer.calibrating, quantizer.fake_quant_enabled = calibrating, not calibrating
    new = sorted(set(dict(host.named_parameters())) - parameters)
    if new:
        warnings.warn(
            f"{door} was prepared at its first call, and its quantizers have parameters of their own ({new[0]} …), "
            f"which an optimizer made before does not train: name it in prepare's method=, or add them to the "
            f"optimizer.",
            stacklevel=2,
        )
    return None


def _inputs(view: nn.Module, door: str, args: Any, kwargs: Any) -> Inputs:
    """Returns the arguments as inputs of a trace: copies, without gradients, of the weights' precision."""
    signature = signature_of(view, door)
    given = {name: value for name, value in kwargs.items() if name != "protect_prob" or name in signature.parameters}
    bound = signature.bind(*args, **given)
    dtype = next((p.dtype for p in view.parameters() if p.is_floating_point()), torch.float32)
    cast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))

    def fresh(tensor: Tensor) -> Tensor:
        # detach() makes a plain tensor of an EdgeIndex, which its graph must know to be one.
        copied = tensor.clone() if isinstance(tensor, EdgeIndex) else tensor.detach().clone()
        return copied.to(dtype) if cast and copied.is_floating_point() else copied

    return from_bound(signature, bound).map(fresh)


_TRACEABLE = (Tensor, BaseData, int, float, bool, str, type(None), torch.device, torch.dtype)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


# -- the user's own code -------------------------------------------------------------------------------------------


def _note_own_code(host: PreparedBase, door: str, why: str) -> None:
    if door in host.own_code:
        return
    host.own_code = {**host.own_code, door: why}
    if why == NOTHING:
        return
    how = f"own code: {why}"
    entry = PreparedMethod(name=door, arguments="", how=how)
    host._noted = replace(host._noted, methods=(*host._noted.methods, entry))


def _run_own_code(host: PreparedBase, call: DoorCall, why: str, refusal: Exception | None) -> Any:
    if torch.compiler.is_compiling():
        return call.run_user()
    try:
        with watched(Watch(host, quantized_parameters(host), f"{call.door} {why}")):
            return call.run_user()
    except Exception as error:
        if isinstance(refusal, InputError) and not isinstance(error, DQConvertError):
            raise refusal from error  # in the user's words
        raise
