"""Views of a file. Nothing that a file names is imported or called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch.fx import Graph, Node

from dqconvert.checkpoint import container, integer
from dqconvert.checkpoint.document import facts_of
from dqconvert.checkpoint.functions import function_name
from dqconvert.checkpoint.graph_data import decode_graph, wellformed
from dqconvert.checkpoint.rebuild import quantizer_of
from dqconvert.checkpoint.schema import PreparedData, check_document, made
from dqconvert.ops import qualified_name
from dqconvert.prepared.module import PreparedModule, view_module
from dqconvert.report import Report
from dqconvert.show.page import ONCE
from dqconvert.show.view import View, view_of


def view_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], View]:
    """Reads a prepared file.

    Returns:
        What the file says of itself, as JSON-ready data with stable keys, and the view of its module.

    Raises:
        CheckpointError: If the file is missing, damaged, something else, or of a newer version, or if its graphs call
            what is not allowed.
    """
    tensors, document = container.read(path)
    check_document(document, PreparedData, str(path))
    with wellformed(f"{path}: the description of the module"):
        graphs = _decoded(document["graphs"])
        others = [(one["name"], _decoded(one["graphs"])) for one in document.get("methods", ())]
        view = view_of(
            graphs,
            made(Report, document["report"]),
            modules=document["modules"],
            protections={one["path"]: (one["p_min"], one["p_max"]) for one in document["protections"]},
            ranges={data["path"]: quantizer_of(data, tensors).range for data in document["quantizers"]},
            methods=[
                (name, train, one["eval"])
                for name, one in [(document["method"], graphs), *others]
                if (train := one["train"]) is not None
            ],
            name=_name,
        )
        return {key: document[key] for key in FACTS}, view


def _decoded(graphs: Mapping[str, Any]) -> dict[str, Graph | None]:
    return {name: None if nodes is None else decode_graph(nodes) for name, nodes in graphs.items()}


def view_live(module: PreparedModule) -> tuple[dict[str, Any], View]:
    """Returns of a module what :func:`view_file` returns of its file; nothing in it is refused."""
    return facts_of(module, lenient=True), view_module(module)


FACTS = ("kind", "model", "method", "factory", "kwargs", "versions", "qconfig")
"""What a file says of itself, and is shown first."""


def _name(node: Node) -> str:
    return function_name(node.target) or qualified_name(node)  # type: ignore[arg-type]


def read_integer(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Reads all that an integer file says; ``None`` of a file of another kind.

    Raises:
        CheckpointError: If the file is damaged.
    """
    _, document = container.read(path)
    return integer.unpack_document(document, str(path)) if document.get("kind") == integer.KIND else None


def integer_graphs(document: Mapping[str, Any]) -> dict[str, Graph]:
    """Returns the graphs of an integer file by title: of forward (no title), other methods, and what is remembered."""
    found = {"": document["graph"]}
    for method in document["methods"]:
        found[_unused(found, f"method {method['name']}:")] = method["graph"]
    found |= {f"{path}{ONCE}": nodes for path, nodes in document["memos"].items()}
    return {title: decode_graph(nodes) for title, nodes in found.items()}


def _unused(graphs: Mapping[str, Any], title: str) -> str:
    return title if title not in graphs else _unused(graphs, f"{title[:-1]}, in another form:")
