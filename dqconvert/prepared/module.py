"""The module that :func:`dqconvert.prepare` returns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph

from dqconvert import notebook
from dqconvert.errors import TraceError
from dqconvert.fuse import Fused
from dqconvert.prepared.base import PreparedBase, extended
from dqconvert.prepared.first_call import first_call
from dqconvert.qconfig import QConfig
from dqconvert.quant import FakeQuantize, Protection
from dqconvert.quant.memo import Memo
from dqconvert.report import Report
from dqconvert.rewrite.place import Quantizers
from dqconvert.rewrite.rewrite import Rewritten
from dqconvert.show.tree import tree
from dqconvert.show.view import View, view_of
from dqconvert.trace import TracedModule
from dqconvert.trace.parts import DoorCall, method_names
from dqconvert.words import listed


class PreparedModule(PreparedBase):
    """A trainable quantized model: the user's parameters, methods and attributes, and quantizers among them.

    Train it with the loop that trained the float model. In training mode ranges are observed and nodes are
    protected; in evaluation mode everything is quantized and nothing is random. Methods of the user's class, and parts
    of the model called by themselves, compute with the same quantizers: each is traced when it is first called, unless
    ``prepare`` did.

    Attributes:
        qconfig: The config it was prepared with.
        report: What was inserted where, and what runs as one operator.
        fuse: Whether groups of nodes run as one operator each; after changing this call ``recompile()``.
    """

    @classmethod
    def _namespace(cls, user: type[nn.Module]) -> dict[str, Any]:
        resets = {"reset_parameters": _reset_parameters} if hasattr(user, "reset_parameters") else {}
        return {**super()._namespace(user), **resets}

    def _no_graph(self, call: DoorCall, refusal: Exception | None = None) -> Any:
        return first_call(self, call, refusal)

    def __repr__(self) -> str:
        """Returns the rewritten graph as a tree: layers, their stages, and beside each what was inserted."""
        return tree(view_module(self))

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Returns the tree for notebooks."""
        first, _, rest = repr(self).partition("\n")
        return notebook.folded(first, notebook.preformatted(rest))


def _reset_parameters(self: PreparedModule, *args: Any, **kwargs: Any) -> Any:
    """Runs the user's ``reset_parameters``; the ranges of the old weights go with them."""
    user: Any = self._user_class
    result = user.reset_parameters(self, *args, **kwargs)
    for _, quantizer in self.quantizers():
        quantizer.reset()
    return result


def class_names(module: PreparedModule) -> dict[str, str]:
    """Returns the class of every module of the model, by path, without those that were inserted."""
    return {
        path: getattr(child, "_user_class", type(child)).__name__
        for path, child in module.named_modules(remove_duplicate=False)
        if not isinstance(child, Quantizers | FakeQuantize | Protection | Memo)
    }


def view_module(module: PreparedModule) -> View:
    """Returns what there is to see of a module."""
    train, evaluate = module.float_graphs
    protections = {path: one.protect for path, one in module.named_modules() if isinstance(one, Protection)}
    return view_of(
        {"train": module.graph, "eval": module.eval_graph, "float_train": train, "float_eval": evaluate},
        module.report,
        modules=class_names(module),
        protections={path: (protect.p_min, protect.p_max) for path, protect in protections.items()},
        ranges={path: quantizer.range for path, quantizer in module.quantizers()},
        methods=[(method.name, method.graph, method.eval_graph) for method in module.all_methods()],
    )


def assemble(
    root: TracedModule,
    rewritten: Rewritten,
    fused: Mapping[Graph, Fused],
    qconfig: QConfig,
    *,
    called: str,
    fuse: bool,
    remarks: tuple[str, ...] = (),
) -> PreparedModule:
    """Makes a prepared module of a method that was traced, rewritten and fused.

    Args:
        root: What was traced; it is used up.
        fused: By graph of the method, what runs for it.
        qconfig: The config it was rewritten with.
        called: The method that calling the module runs.
        fuse: Whether groups of nodes run as one operator each.
        remarks: What the report is to say.
    """
    graph, eval_graph, state = root._parts()
    del state["_objects"]  # the modules have quantizers now
    method, user = rewritten.method, root._user_class
    state |= {
        "qconfig": qconfig,
        "_noted": extended(Report(model=user.__name__, entries=()), rewritten, remarks),
        "float_graphs": method.source,
        "graph_method": method.name,
        "called_method": called,
        "islands": method.islands,
        "fuse": fuse,
        "user_fuse": state.get("fuse"),
    }
    module: PreparedModule = PreparedModule._assemble(user, state, graph, eval_graph, _fused=fused)
    device = next((parameter.device for parameter in nn.Module.parameters(module)), torch.device("cpu"))
    for child in module.modules():
        if isinstance(child, Quantizers):
            child.to(device)
    return module


def refuse_taken_names(model: nn.Module) -> None:
    """Raises where a part or an attribute of a model would be hidden by what prepared modules have under its name.

    Raises:
        TraceError: If that is so.
    """
    own = {*vars(model), *model._modules, *model._parameters, *model._buffers} - {"fuse"}  # which layers of PyG have
    if taken := sorted(own & _names()):
        raise TraceError(
            f"{type(model).__name__} has {listed(taken)}, which in prepared modules means something else: name it "
            f"otherwise, or prepare a module that holds the model and calls it."
        )


def hidden_methods(model: nn.Module) -> list[str]:
    """Returns remarks on methods of a model that are not reached, as prepared modules have others of their names."""
    methods = (name for name in method_names(type(model)) if name in _names())
    return [f"{name}() is that of prepared modules: the model's own has the same name" for name in methods]


@functools.cache
def _names() -> frozenset[str]:
    """Returns the public names that prepared modules have, and other modules have not."""
    found = {*dir(PreparedModule), *(name for cls in PreparedModule.__mro__ for name in inspect.get_annotations(cls))}
    return frozenset(name for name in found - {*dir(nn.Module), "training"} if not name.startswith("_"))
