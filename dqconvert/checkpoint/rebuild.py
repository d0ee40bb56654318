"""A prepared module again, from what a file says and the float model that its reader holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.modules.lazy import LazyModuleMixin

from dqconvert.checkpoint.document import FLAGS, PLAIN, aliases_of
from dqconvert.checkpoint.fit import check_fit, shapes_of
from dqconvert.checkpoint.graph_data import decode_graph, wellformed
from dqconvert.checkpoint.schema import PreparedData, check_document, made
from dqconvert.checkpoint.stored import decode_extra, put_together
from dqconvert.errors import CheckpointError, GuardError, TraceError
from dqconvert.prepared import PreparedModule
from dqconvert.qconfig import Protect, QConfig, QSpec
from dqconvert.quant import FakeQuantize, Protection
from dqconvert.quant.fake_quantize import Dropout, probability
from dqconvert.report import Report
from dqconvert.rewrite.place import attach, container_name
from dqconvert.trace import Island
from dqconvert.trace.computed import at_rest, computed_names
from dqconvert.trace.copies import working_copy
from dqconvert.trace.inputs import method_of
from dqconvert.trace.method import Method
from dqconvert.trace.unchanged import Read, put, words


def rebuild(document: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, where: str) -> PreparedModule:
    """Makes the module that a file describes.

    Args:
        document: From :func:`dqconvert.checkpoint.document.describe`.
        tensors: The file's tensors, tied ones once.
        model: A float instance of the model; it is copied.
        where: The file, as messages call it.

    Raises:
        CheckpointError: If the model is not the one that the file was made from, or the document is malformed.
    """
    check_document(document, PreparedData, where)
    root = _copy(model)
    with wellformed(f"{where}: the description of the module"), at_rest(root):
        state, aliases = document["state"], document["state"]["aliases"]
        plain = put_together(tensors, document.get("forms", {}))
        extra = {name: decode_extra(value, plain) for name, value in document.get("extra", {}).items()}
        computed = computed_names(root)
        stored = {name: value for name, value in plain.items() if name.rpartition(":")[0] not in extra}
        every = {**stored, **{alias: stored[name] for alias, name in aliases.items()}}
        every = {name: value for name, value in every.items() if name not in computed}
        beside = [name for name in state["beside"] if name not in computed]
        saved = {name: value for name, value in every.items() if name not in beside}
        inserted = tuple(f"{entry['path']}." for entry in document["quantizers"])
        own = {name: value for name, value in saved.items() if not aliases.get(name, name).startswith(inserted)}
        _set_absent(root, state.get("absent", []), every)
        expected = {name: value for name, value in root.state_dict(keep_vars=True).items() if name not in computed}
        check_fit(model, shapes_of(_without_extra(expected)), shapes_of(_without_extra(own)), where)
        _check_ties(root, {alias: name for alias, name in aliases.items() if alias in own}, where)
        _take_dtypes(root, every)
        _attach_all(root, document, every)
        sparse = [name for name, value in saved.items() if value.layout != torch.strided]
        for name in sparse:
            _set_buffer(root, name, saved[name])
        found = root.load_state_dict({**{n: v for n, v in saved.items() if n not in sparse}, **extra}, strict=False)
        unknown = [*found.unexpected_keys, *(name for name in found.missing_keys if name not in sparse)]
        if unknown:
            raise CheckpointError(
                f"{where}: does not fit {type(model).__name__}: {unknown[0]!r} is in one of both only."
            )
        _settle(root)
        for name in beside:
            _set_tensor(root, name, every[name])
        for path, steps, value in state.get("settings", ()):
            _set_attribute(root, (str(path), tuple((str(kind), name) for kind, name in steps)), value, where)
        module = _build(root, document)
        _check_attributes(module, where)
        _set_modes(module, document)
    return module


def _without_extra(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what modules say of themselves: it may be a tensor, of any shape."""
    return {name: value for name, value in tensors.items() if not name.endswith("_extra_state")}


def _settle(root: nn.Module) -> None:
    """Lets torch's lazy layers be what they become: the file has told them their shapes, as a first input would."""
    for module in root.modules():
        if not isinstance(module, LazyModuleMixin) or module.has_uninitialized_params():
            continue
        for name in ("_initialize_hook", "_load_hook"):
            if (hook := module.__dict__.pop(name, None)) is not None:
                hook.remove()
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.LazyLinear) and isinstance(weight, Tensor):
            module.in_features = weight.size(1)
        if module.cls_to_become is not None:
            module.__class__ = module.cls_to_become


def _set_absent(root: nn.Module, absent: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Buffers that are there in the file and not yet in the model, and the other way round: set while it trained."""
    for path, module in root.named_modules():
        for name, value in list(module._buffers.items()):
            whole = f"{path}.{name}" if path else name
            if value is None and whole in tensors:
                module._buffers[name] = torch.zeros_like(tensors[whole])
            elif value is not None and whole in absent:
                module._buffers[name] = None


def _set_buffer(root: nn.Module, path: str, value: Tensor) -> None:
    """Sets a sparse buffer, whose indices come with its values."""
    owner, _, name = path.rpartition(".")
    buffers = root.get_submodule(owner)._buffers
    present = buffers.get(name)
    if present is None or present.layout != value.layout:
        raise CheckpointError(f"the file has {path!r} as a sparse tensor, and the given model has not.")
    buffers[name] = value.to(present.device)


def _copy(model: nn.Module) -> nn.Module:
    return working_copy(model, caller="load()", error=CheckpointError)


def _check_ties(root: nn.Module, aliases: Mapping[str, str], where: str) -> None:
    """Tensors that are one in the file must be one in the model, and the other way round, or it trains differently."""
    here = aliases_of({n: v for n, v in root.state_dict(keep_vars=True).items() if isinstance(v, Tensor)})
    for name in sorted(set(here) ^ set(aliases)):
        other, place = (here[name], "model") if name in here else (aliases[name], "file")
        raise CheckpointError(
            f"{where}: {name!r} and {other!r} are one tensor in the {place} and two in the other: the model is of "
            f"another class, or ties its layers differently."
        )


def _take_dtypes(root: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Casts the model to the types that were saved, as loading would round to its own."""
    for path, module in root.named_modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                saved = tensors.get(f"{path}.{name}" if path else name)
                if value is None or saved is None or torch.nn.parameter.is_lazy(value) or value.dtype == saved.dtype:
                    continue
                if isinstance(value, nn.Parameter):
                    value.data = value.data.to(saved.dtype)
                else:
                    table[name] = value.to(saved.dtype)


def _attach_all(root: nn.Module, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    device = next((value.device for value in nn.Module.parameters(root)), torch.device("cpu"))
    made: list[tuple[str, nn.Module]] = []
    for data in document["quantizers"]:
        ends = tensors[f"{data['path']}.min_val"]
        if data["channels"] not in (None, ends.numel()):
            raise CheckpointError(f"the file has a quantizer {data['path']!r} of {data['channels']} channels.")
        quantizer = quantizer_of(data)
        quantizer.behind = tuple(_dropout(root, data["path"], one) for one in data.get("behind", ()))
        made.append((data["path"], quantizer))
    for data in document["protections"]:
        protect = Protect(p_min=data["p_min"], p_max=data["p_max"])
        made.append((data["path"], Protection(protect)))
    for path, module in made:
        owner, container, name = f".{path}".rsplit(".", 2)
        holder = root.get_submodule(owner.lstrip("."))
        if container != container_name(holder) or not name.isidentifier():
            raise CheckpointError(f"the file has a quantizer {path!r}, where the model has something of its own.")
        attach(root, path, module.to(device))


def _dropout(root: nn.Module, path: str, one: Any) -> Dropout:
    """Returns a dropout before a quantizer, checked against the model."""
    dropout = tuple(one) if isinstance(one, list) else one
    fits = isinstance(dropout, str) or (
        isinstance(dropout, tuple) and len(dropout) == 2 and isinstance(dropout[1], str)
    )
    try:
        p = probability(root, dropout) if fits else None
    except (AttributeError, TypeError, ValueError):
        p = None
    if p is None or not 0 <= p <= 1:
        raise CheckpointError(f"the file has the quantizer {path!r} behind the dropout {one!r}, which there is not.")
    return cast(Dropout, dropout)


def quantizer_of(data: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> FakeQuantize:
    """Returns a quantizer as a file describes it, with its state if that is given."""
    quantizer = FakeQuantize(
        QSpec(**data["spec"]),
        name=data["name"],
        signed=data["signed"],
        channels=data["channels"],
        channel_dim=data["channel_dim"],
        row_dim=data["row_dim"],
        noise=data.get("noise"),
    )
    for flag in FLAGS:
        setattr(quantizer, flag, bool(data["flags"][flag]))
    if tensors is not None:
        quantizer.load_state_dict({name: tensors[f"{data['path']}.{name}"] for name in quantizer.state_dict()})
    return quantizer


def _set_tensor(root: nn.Module, path: str, value: Tensor) -> None:
    """Sets a buffer outside the ``state_dict``, or a plain attribute that the graph reads."""
    owner_path, _, name = path.rpartition(".")
    owner = root.get_submodule(owner_path)
    present = getattr(owner, name, None)
    if not isinstance(present, Tensor) or isinstance(present, nn.Parameter):
        raise CheckpointError(f"the file has the tensor {path!r}, which the given model does not have.")
    alike = (present.layout, present.shape, present.dtype) == (torch.strided, value.shape, value.dtype)
    if alike and 0 not in present.stride():
        with torch.no_grad():
            present.copy_(value)  # others may be views of it
    else:
        setattr(owner, name, value.to(present.device))


def _set_attribute(root: nn.Module, key: Read, value: Any, where: str) -> None:
    """Sets what the forward reads to what it was when the file was saved."""
    path, ((_, name), *_) = key
    own = vars(root.get_submodule(path))
    known = name in own or hasattr(type(root.get_submodule(path)), name)
    if not known or callable(own.get(name)) or not isinstance(value, PLAIN) or not put(root, key, value):
        raise CheckpointError(
            f"{where}: {words(key)} is {value!r} in the file, and something else in the given model: pass a model that "
            f"was made with the same arguments."
        )


def _check_attributes(module: PreparedModule, where: str) -> None:
    try:
        module.check_unchanged()
    except GuardError as error:
        what = str(error).partition(": the graph")[0]
        raise CheckpointError(
            f"{where}: does not fit the given model: {what}. Pass a model that was made with the same arguments."
        ) from error


def _build(root: nn.Module, document: Mapping[str, Any]) -> PreparedModule:
    train, evaluate, source = _graphs(root, document["graphs"])
    return PreparedModule.build(
        root,
        train,
        evaluate,
        qconfig=QConfig.from_dict(document["qconfig"]),
        _noted=made(Report, document["report"]),
        float_graphs=source,
        graph_method=str(document["method"]),
        called_method=str(document.get("called_method", document["method"])),
        more_methods=tuple(_method(root, data) for data in document.get("methods", ())),
        plain_methods=tuple(_method(root, data) for data in document.get("plain_methods", ())),
        own_code={_door(root, door): str(why) for door, why in document.get("own_code", {}).items()},
        islands=made(tuple[Island, ...], document["islands"]),
        fuse=bool(document["fuse"]),
        from_file=True,
        user_fuse=vars(root).get("fuse"),
    )


def _graphs(root: nn.Module, data: Mapping[str, Any]) -> tuple[Graph, Graph | None, tuple[Graph, Graph | None]]:
    """Returns the graphs of a method, of training and, where it differs, of evaluation; and the float model's."""
    train, float_train = (decode_graph(data[name], root) for name in ("train", "float_train"))
    evaluate, float_eval = (
        None if data[name] is None else decode_graph(data[name], root) for name in ("eval", "float_eval")
    )
    return train, evaluate, (float_train, float_eval)


def _method(root: nn.Module, data: Mapping[str, Any]) -> Method:
    graph, eval_graph, source = _graphs(root, data["graphs"])
    name, how, islands = _door(root, data["name"]), str(data["how"]), made(tuple[Island, ...], data["islands"])
    return Method(name=name, graph=graph, eval_graph=eval_graph, source=source, islands=islands, how=how)


def _door(root: nn.Module, name: Any) -> str:
    """Returns the name of a method, if the model has it."""
    try:
        method_of(root, name)
    except TraceError as error:
        raise CheckpointError(f"the file has a method that the given model does not have: {error}") from error
    return str(name)


def _set_modes(module: PreparedModule, document: Mapping[str, Any]) -> None:
    state = document["state"]
    # Parts, one by one: what a model's own train() does besides was done before it was saved.
    for path, part in nn.Module.named_modules(module):
        part.training = bool(state["modes"].get(path, state["training"]))
    frozen = set(state["frozen"])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
