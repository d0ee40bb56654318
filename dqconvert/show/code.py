"""The generated forward of a graph, as text that fits a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch.fx import Graph

from dqconvert.show.view import View

_WIDTH = 80


def code_of(view: View) -> str:
    """Returns the Python code of the training forward, and of the evaluation forward where it differs in structure.

    The code is generated from the graph, to be read; nothing runs it.
    """
    train = _forward(view.graphs["train"])
    if "eval" not in view.graphs:
        return train
    return "\n\n".join(("# training", train, "# evaluation", _forward(view.graphs["eval"])))


def _forward(graph: Graph) -> str:
    source = graph.python_code("self").src.strip("\n")
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
