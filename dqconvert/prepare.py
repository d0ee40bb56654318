"""``prepare``: float module → trace → rewrite → fuse → prepared module. Read this page first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dqconvert.errors import TraceError
from dqconvert.expect import expect_float
from dqconvert.fuse import fuse_method
from dqconvert.methods import Methods, methods_of, with_shapes
from dqconvert.optimizers import watch_optimizers
from dqconvert.prepared.again import prepare_again
from dqconvert.prepared.base import add_rewritten, defer_method, fuse_more, keep_plain, rewrite_more, run_own_code
from dqconvert.prepared.module import PreparedModule, assemble, hidden_methods, refuse_taken_names
from dqconvert.qconfig import QConfig, RuleLedger, as_qconfig
from dqconvert.report import Report
from dqconvert.rewrite.rewrite import no_quantizers, rewrite
from dqconvert.trace import trace
from dqconvert.trace.garbage import collecting_new_objects


class Prepared(NamedTuple):
    """The result of :func:`prepare`.

    Attributes:
        module: The trainable quantized model.
        report: What was inserted where, and what stayed float and why.
    """

    module: PreparedModule
    report: Report


def prepare(
    model: nn.Module,
    qconfig: QConfig | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    *,
    method: str | Sequence[str] | Mapping[str, Any] = "forward",
    strict: bool = False,
    fuse: bool = True,
) -> Prepared:
    """Turns a float PyG model into a trainable Degree-Quant model.

    The model is traced by running it on example inputs, the trace is checked against it bit for bit, and quantizers
    are inserted by the role that each value has: weights, inputs and outputs of weighted operations, edge weights,
    messages, aggregates and layer outputs. In training, nodes are protected with a probability that grows with their
    in-degree. The given model is not changed, and neither is the global random state: the module has copies of its
    parameters. An optimizer of the model's own parameters trains nothing of it; build one of ``module.parameters()``.

    Args:
        model: Any PyG model. A prepared module is prepared again: quantizers that stay keep ranges of the same values.
        qconfig: A preset's name, a path to a TOML or JSON file, a dict of overrides, or a :class:`QConfig`. ``None``:
            ``"int8-dq"``.
        example_inputs: One call's worth of inputs, or several, of which the first is taken: as
            :func:`dqconvert.calibrate` takes them. ``None``: made up from the signature and the layers. Tensor
            arguments that are absent here must stay absent.
        method: What to trace now. A name: the method that the prepared module's ``forward`` becomes; where that is not
            ``"forward"``, the model's own forward cannot be called any more. Several names, or a dict of name to
            example inputs: each method stays under its name, and calling the module runs the model's own forward, or
            the first of them where it has none. Inputs that are not given for one are those of the same names of the
            first, or those of its first call.

            Methods that are not named, and parts of the model that are called by themselves (``module.encoder(x)``),
            are traced at their first call, on the inputs of that call, and so is a method that is called in another
            form (``module(x)`` to train, ``module(x, edge_index)`` to evaluate). All share quantizers by path and
            role. ``report.methods`` lists them. What a graph cannot hold (a loop over a loader) runs the model's own
            code, whose layers are prepared each for itself.
        strict: Raise where a submodule cannot be traced, instead of leaving it in float.
        fuse: Whether groups of nodes (message passing; quantizers with sums and ReLUs between them) run as one operator
            each: less memory, several times faster, the same results. ``False``: node by node.

    What the forward reads off its modules is followed where it is a number with a fraction (``module.alpha = 0.3``,
    items of dicts and lists, fields of settings); any other change is a ``GuardError`` that names the attribute, and so
    is one of a constant that it reads from a global name (``ALPHA``, ``config.ALPHA``). Hooks that are registered by
    now run; of those registered later, the ones that cannot are warned of.

    Returns:
        The prepared module and the report. The module's ``state_dict`` has every key of the float model's, and the
        quantizers'. Its forward takes one more argument, ``protect_prob``: float ``[num_nodes]`` (or a dict by node
        type), protection probabilities to use instead of those computed from the ``edge_index`` given.

    Raises:
        ConfigError: If the config is wrong, or one of its rules matches nothing in this model.
        TraceError: If the model cannot be traced, or has nothing to quantize.

    Source:
        Tailor, Fernandez-Marques, Lane. Degree-Quant: Quantization-Aware Training for Graph Neural Networks. ICLR 2021.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import GCN
        >>> module, report = dqconvert.prepare(GCN(16, 32, num_layers=2, out_channels=7), "int8-dq")
        >>> x, edge_index = torch.randn(5, 16), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
        >>> module.train()(x, edge_index).sum().backward()   # observes ranges, protects nodes
        >>> module.eval()(x, edge_index).shape               # everything quantized
        torch.Size([5, 7])
    """
    config = as_qconfig(qconfig)
    expect_float(model, "prepare", prepared=True)
    # The copy is to be trained, wherever it was made.
    with collecting_new_objects(), torch.inference_mode(False), torch.enable_grad():
        if isinstance(model, PreparedModule):
            module = prepare_again(model, config, fuse=fuse)
        else:
            module = _prepare(model, methods_of(model, method, example_inputs), config, strict=strict, fuse=fuse)
    watch_optimizers(model, module)
    return Prepared(module, module.report)


def _prepare(model: nn.Module, methods: Methods, qconfig: QConfig, *, strict: bool, fuse: bool) -> PreparedModule:
    """Traces, rewrites and fuses each method of a model, and makes one module of them."""
    if torch._C._is_tracing():  # its recorder and ours would each see what the other does; torch's crashed
        raise TraceError("prepare was called within torch.jit.trace: prepare the model before, outside of it.")
    refuse_taken_names(model)
    model = with_shapes(model, methods)
    ledger = RuleLedger(qconfig)
    first, *others = methods.inputs
    found = trace(model, methods.inputs[first], method=first, strict=strict)
    rewritten = rewrite(found.method(first), found.module, ledger, products=found.products)
    if not rewritten.found:
        raise no_quantizers()
    fused = fuse_method(rewritten.method, found.module, groups=fuse)
    called, remarks = methods.called, found.remarks
    if called != "forward" and type(model).forward is not nn.Module.forward:
        kept = f"calling the module runs {called}, not the model's own forward: to keep that, pass a tuple of names"
        remarks = (*remarks, kept)
    remarks = (*remarks, *hidden_methods(model))
    module = assemble(found.module, rewritten, fused, qconfig, called=called, fuse=fuse, remarks=remarks)
    keeping = {first: found.left} if first != "forward" else {}
    for name in others:
        try:
            more = trace(model, methods.inputs[name], method=name, strict=strict)
        except TraceError:
            if methods.inputs[name] is not None:
                raise
            defer_method(module, name)
            continue
        rewritten = rewrite_more(module, more.method(name), ledger, more.products)
        if rewritten.found:
            add_rewritten(module, rewritten, fuse_more(module, rewritten), more.remarks)
            keeping[name] = more.left
        elif not more.left and methods.inputs[name] is not None:  # else at its first call: made up, z may be numbers
            keep_plain(module, rewritten.method)
    ledger.check()
    run_own_code(module, {name: f"keeps something for later in {left[0]!r}" for name, left in keeping.items() if left})
    return module
