"""The generated forward of a graph, as text that fits a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dqconvert.checkpoint.graph_data import decode_graph
from dqconvert.show.view import View

_WIDTH = 80


def code_of(view: View) -> str:
    """The Python code of the training forward, and of the evaluation forward where it differs in structure.

    The code is generated from the graph, to be read; nothing runs it.

    Raises:
        CheckpointError: If the graph in the file calls what is not allowed.
    """
    train, evaluate = (view.document["graphs"][name] for name in ("train", "eval"))
    parts = (
        [_forward(train)] if evaluate is None else ["# training", _forward(train), "# evaluation", _forward(evaluate)]
    )
    return "\n\n".join(parts)


def _forward(nodes: list[dict[str, Any]]) -> str:
    source = decode_graph(nodes).python_code("self").src.strip("\n")
    lines = [re.sub(r";( +\w+ =)+ None( +#.*)?$", "", line.rstrip()) for line in source.splitlines()]
    return "\n".join(part for line in lines if line for part in _folded(line))


def _folded(line: str) -> Iterator[str]:
    """A long line, cut behind commas, or behind an opening bracket."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    while len(line) > _WIDTH:
        cut = line.rfind(", ", len(indent) + 1, _WIDTH)
        cut = line.rfind("(", len(indent) + 1, _WIDTH) if cut < 0 else cut
        if cut < 0:
            break
        yield line[: cut + 1]
        line = indent + line[cut + 1 :].lstrip()
    yield line
