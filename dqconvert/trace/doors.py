"""Modules whose methods, and whose parts called from outside, run graphs as their forward does.

A *door* is where code from outside enters: a method of the root (``"encode"``), or one of a part of it
(``"encoder.forward"``, ``"convs.0.lin.forward"``). Each door has as many graphs as it was called in forms: without edge
weights and with them, say. Parts keep their class, in a subclass of one instance that knows the module they belong to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.fx import Graph

from dqconvert.errors import ArgumentError, ModeError, ObserverError
from dqconvert.trace.check import Check
from dqconvert.trace.hooks import Hook, hooks_of, new_hook_number, refuse_weight_hooks, warn_of_lost
from dqconvert.trace.method import Method, binds
from dqconvert.trace.module import TracedModule, write_nowhere
from dqconvert.trace.parts import WHOLE, DoorCall, door_method, function_of, method_names, open_parts, set_aside
from dqconvert.trace.unchanged import checks
from dqconvert.trace.watch import unwatched, watching

MOST_FORMS = 16
"""Graphs of one door: more forms of arguments than that are not forms but values."""


class Undo(Protocol):
    """A state of a module that can be restored."""

    def restore(self) -> None:
        """Makes it so again."""


class Running(NamedTuple):
    """A graph of a door, and the function that it generated."""

    graph: Graph
    function: Callable[..., Any]


class DoorModule(TracedModule):
    """A traced module whose other methods and parts run graphs of its own.

    Attributes:
        graph_method: The door that ``graph`` and ``eval_graph`` are of.
        called_method: The door that calling the module enters.
        more_methods: Further graphs: of other doors, and of the same on arguments of another form.
        own_code: Doors that run the user's code, whose parts are doors again, and why.
    """

    graph_method: str = "forward"
    called_method: str = "forward"
    more_methods: tuple[Method, ...] = ()
    own_code: Mapping[str, str] = MappingProxyType({})
    _running: dict[str, list[Running]]
    _hooks_seen: set[Hook]
    _hook_number: int

    @classmethod
    def _namespace(cls, user: type[nn.Module]) -> dict[str, Any]:
        return {**super()._namespace(user), "_running": {}}

    @classmethod
    def _assemble(
        cls, user: type[nn.Module], state: dict[str, Any], graph: Graph, eval_graph: Graph | None, **own: Any
    ) -> Any:
        module = super()._assemble(user, set_aside(state, user), graph, eval_graph, **own)
        for name in method_names(user):
            if name != "forward" and not hasattr(cls, name):
                setattr(type(module), name, door_method(function_of(module, user, name), name, module))
        module._open_parts()
        return module

    # -- the graphs --------------------------------------------------------------------------------------------------

    def _write_code(self) -> Any:
        """Generates the code of every graph."""
        cls = type(self)
        running: dict[str, list[Running]] = {}
        for method in self.more_methods:
            running.setdefault(method.name, []).append(self._opened(method))
        code = super()._write_code()
        self.__dict__.update(_hooks_seen=hooks_of(self), _hook_number=new_hook_number())
        primary = Running(self._graph, cls.forward)
        cls._running = {**running, self.graph_method: [primary, *running.get(self.graph_method, ())]}
        called = self.called_method
        user = function_of(self, self._user_class, called) if hasattr(self._user_class, called) else None
        cls.forward = door_method(primary.function if called == self.graph_method else user, called, user=user)
        return code

    def _opened(self, method: Method) -> Running:
        part = method.name.rpartition(".")[0]
        forward = type(self).forward
        write_nowhere(self, *method.graphs())
        try:
            return Running(method.graph, self._generate(method.graph, method.eval_graph, part)[0])
        finally:
            type(self).forward = forward

    def _look_for_hooks(self) -> None:
        """Lets hooks run that were registered since the code was generated, and warns of those that cannot."""
        before, graphs = self._hooks_seen, [graph for method in self.all_methods() for graph in method.graphs()]
        refuse_weight_hooks(self, graphs)
        self._hook_number = new_hook_number()
        if hooks_of(self) - before:
            self.recompile()
            warn_of_lost(self._hooks_seen - before, graphs)

    def check_unchanged(self) -> None:
        """Checks that what its methods read off its modules is what it was when they were traced.

        Raises:
            GuardError: If it is not; it names the attribute.
        """
        for method in self.all_methods():
            Check(self, checks(method.graphs()))(self)

    def add_method(self, method: Method) -> Running:
        """Takes one more graph; who calls the door on such arguments runs it."""
        before = self.more_methods
        self.more_methods = (*before, method)
        try:
            running = self._opened(method)
        except BaseException:
            self.more_methods = before
            raise
        self._running.setdefault(method.name, []).append(running)
        return running

    def all_methods(self) -> Iterator[Method]:
        """Yields every graph of the module; first the one that is ``graph``."""
        yield Method(name=self.graph_method, graph=self._graph, eval_graph=self.eval_graph)
        yield from self.more_methods

    # -- the doors ---------------------------------------------------------------------------------------------------

    def _enter(self, call: DoorCall) -> Any:
        """Runs the graph of a door; where there is none for the arguments, calls :meth:`_no_graph`."""
        if watching[0]:
            with unwatched():
                return self._entered(call)
        return self._entered(call)

    def _entered(self, call: DoorCall) -> Any:
        if not torch.compiler.is_compiling() and self._hook_number != new_hook_number():
            self._look_for_hooks()
        was = self._before(call.part)
        if was is None:
            return self._taken(call, None)
        try:
            return self._taken(call, was)
        except BaseException:
            was.restore()
            raise

    def _taken(self, call: DoorCall, was: Undo | None) -> Any:
        """Returns what :meth:`_chosen` returns; raises the float model's own error where that refuses the mode."""
        try:
            return self._chosen(call, was)
        except ModeError:
            if call.user is not None:
                call.run_user()
            raise

    def _chosen(self, call: DoorCall, was: Undo | None) -> Any:
        """Runs the graph that is for the arguments.

        Args:
            was: The state of the module before any graph was tried.
        """
        found = self._running.get(call.door)
        if not found or call.door in self.own_code:
            return self._no_graph(call)
        try:
            return self.run_door(found[0], call)
        except Exception as error:
            # What a graph refuses, or trips over, may be what another one is for.
            if call.fits(found[0].graph) or not binds(found[0].graph, call.args, call.kwargs):
                raise
            refusal = error
        try:
            if was is not None:  # the next one is the first that anybody sees
                was.restore()
            chosen = next((running for running in found[1:] if call.fits(running.graph)), None)
            if chosen is not None:
                return self.run_door(chosen, call)
            if len(found) >= MOST_FORMS:
                raise ArgumentError(
                    f"{call.door}: was called on arguments of more than {MOST_FORMS} forms (flags, words, absent "
                    f"tensors), each with a graph of its own; {refusal}"
                )
            return self._no_graph(call, refusal)
        finally:
            del refusal  # it holds this frame, and all tensors of the graph's

    def _before(self, part: nn.Module) -> Undo | None:
        """Returns how to undo a call of a part that fails; ``None`` if the call changes nothing."""
        return None

    def run_door(self, running: Running, call: DoorCall) -> Any:
        """Runs a graph; where one of its quantizers has no range yet, the error names the door, too."""
        try:
            return running.function(self, *call.args, **call.kwargs)
        except ObserverError as error:
            if call.door == self.called_method:
                raise
            raise ObserverError(
                f"{error} It belongs to {call.door}, which the training did not call: train through it, too, or "
                f"calibrate with dqconvert.calibrate(module, data, method={call.door!r})."
            ) from error

    def _no_graph(self, call: DoorCall, refusal: Exception | None = None) -> Any:
        """Answers a call that no graph is for.

        Args:
            refusal: Why the door's graphs refused it; ``None`` where it has none.
        """
        raise NotImplementedError

    # -- the parts ---------------------------------------------------------------------------------------------------

    def _inserted(self, module: nn.Module) -> bool:
        """Returns True if a module is none of the user's."""
        return False

    def _open_parts(self) -> None:
        """Makes the parts of this module doors, each with the methods of its class."""
        open_parts(self, self, self._inserted)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[WHOLE] = True  # what parts ask; of a shallow copy, they may be the original's
        return super().__deepcopy__(memo)

    def for_one_run(self) -> Any:
        """Returns a deep copy: parts are doors of the module that they are in."""
        return copy.deepcopy(self)
