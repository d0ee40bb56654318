"""``save`` and ``load``: a prepared or an integer module as one safetensors file, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from dqconvert.checkpoint import container, integer
from dqconvert.checkpoint.document import KIND, aliases_of, describe, extra_of, tensors_of
from dqconvert.checkpoint.rebuild import rebuild
from dqconvert.checkpoint.stored import take_apart
from dqconvert.errors import CheckpointError
from dqconvert.expect import expect_float, expect_path, expect_quantized
from dqconvert.lower import IntegerModule
from dqconvert.optimizers import watch_optimizers

__all__ = ["load", "save"]


def save(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    factory: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Saves a prepared or an integer module in one safetensors file: its tensors, its graphs and its report.

    A prepared module comes with its ranges. Of an integer module, codes of 8 bits take a byte each, and of 4 bits half
    a byte.

    A global tensor that the forward reads is looked up again by a prepared module that is loaded, where the code of the
    model given to :func:`load` reads it. The file of an integer module holds it, and says so, in a warning as well.

    The same module gives the same bytes. The file is written whole or not at all; one that was there is replaced.

    Args:
        module: A prepared module, in any state of training; or an integer module.
        path: Where to write.
        factory: What made the float model (``"pkg.mod:Class"``): information for whoever opens the file.
        kwargs: With which arguments, likewise.

    Raises:
        CheckpointError: If the file cannot be written, or the module holds what a file cannot: a quantizer of the
            user's own, or something else than tensors in its ``state_dict``; in an integer module, a part that stayed
            whole and that only the model's own code can make again.

    Example:
        >>> import torch, dqconvert
        >>> from torch_geometric.nn import SAGEConv
        >>> module, _ = dqconvert.prepare(SAGEConv(8, 4), "int4-dq")
        >>> dqconvert.save(module, "/tmp/sage.dq")
        >>> again = dqconvert.load("/tmp/sage.dq", model=SAGEConv(8, 4))
        >>> torch.equal(again.lin_l.weight, module.lin_l.weight)
        True
    """
    given = expect_quantized(module, "save", error=CheckpointError)
    expect_path(path, "save")
    if isinstance(given, IntegerModule):
        document, tensors = integer.describe(given)
        container.write(path, tensors, integer.pack_document(document))
        return
    tensors = tensors_of(given)
    aliases = aliases_of(tensors)
    extra, more = extra_of(given)
    stored, forms = take_apart({**{name: tensors[name] for name in tensors if name not in aliases}, **more})
    document = {**describe(given, factory=factory, kwargs=kwargs), "forms": forms, "extra": extra}
    container.write(path, stored, document)


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> Any:
    """Loads what :func:`save` saved.

    Nothing that the file names is imported or run: a prepared module is rebuilt on the float model given, and an
    integer module calls what is on a list of operations, and nothing else.

    Args:
        path: A prepared or an integer file.
        model: An instance of the float model that a prepared module was made from, with any weights. It is copied, not
            changed; the result is on its device. An integer module needs none.

    Returns:
        The prepared module, in the state it was saved in: ready to train on, to evaluate, to prepare again. Or the
        integer module, ready to run.

    Raises:
        CheckpointError: If the file is missing, damaged, of a newer version or another file, or if the model is not
            the one that it was made from.

    Example:
        >>> import dqconvert
        >>> from torch_geometric.nn import SAGEConv
        >>> dqconvert.save(dqconvert.prepare(SAGEConv(8, 4), "int4-dq").module, "/tmp/sage.dq")
        >>> dqconvert.load("/tmp/sage.dq", model=SAGEConv(8, 5))
        Traceback (most recent call last):
            ...
        dqconvert.errors.CheckpointError: /tmp/sage.dq: does not fit SAGEConv: 'lin_l.weight' is [4, 8] in the file and
        [5, 8] in the model; ...
    """
    expect_path(path, "load")
    if model is not None:
        expect_float(model, "load, as model=,", error=CheckpointError)
    tensors, document = container.read(path)
    if document.get("kind") == integer.KIND:
        if model is not None:
            raise CheckpointError(f"{path}: is an integer file, which needs no model: leave model= out.")
        return integer.rebuild(integer.unpack_document(document, str(path)), tensors, str(path))
    if document.get("kind") != KIND:
        raise CheckpointError(f"{path}: is of the kind {document.get('kind')!r}, which this version cannot load.")
    if model is None:
        made = f"; it was made by {document['factory']}" if document.get("factory") else ""
        raise CheckpointError(
            f"{path}: is a prepared file of a {document.get('model')}: pass model=, an instance of the float "
            f"model{made}. A file never names code to run."
        )
    module = rebuild(document, tensors, model, str(path))
    watch_optimizers(model, module)
    return module


def holds_integer(path: str | os.PathLike[str]) -> bool:
    """True if a file holds an integer module.

    Raises:
        CheckpointError: If the file is missing, damaged, of a newer version or another file.
    """
    return bool(container.read(path)[1].get("kind") == integer.KIND)
