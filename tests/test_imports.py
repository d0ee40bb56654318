"""The house: arrows between its rooms go only down, without circles, and docstrings are of one style."""

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "dqconvert").rglob("*.py"))
}

HOUSE = (
    *(
        "__main__",
        "cli",
        "commands",
        "demo",
        "evaluate",
        "evaluation",
        "exported",
        "metrics",
        "bench",
        "user",
        "mixed",
        "finetune",
        "distil",
        "export",
        "onnx",
        "pt2",
        "pt2_inputs",
        "labels",
        "weights",
        "lightning",
        "plot",
        "node_errors",
        "tally",
        "compare",
        "checkpoint",
        "infer",
        "calibrate",
        "kurtosis",
        "schedule",
        "bits",
    ),
    *("convert", "prepare", "methods", "optimizers", "expect", "lower", "prepared", "show", "fuse", "rewrite", "store"),
    *("report", "advice", "samples", "notebook", "quant", "kernels", "qconfig", "trace", "drawing", "files", "ops"),
    *("distributed", "words", "errors", "", "on_demand"),
)
"""The rooms, from the top: each imports from itself and from those behind it. The last is ``dqconvert/__init__.py``."""


@functools.cache
def tree(name):
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


@functools.cache
def statements(name):
    """Returns the statements of a module, and those within them: in functions and for type checkers, too."""
    found, pending = [], [tree(name)]
    while pending:  # expressions, which are most of a tree, are left out
        inner = [node for node in ast.iter_child_nodes(pending.pop()) if isinstance(node, STATEMENTS)]
        found += inner
        pending += inner
    return found


def imported(name):
    """Yields what a module imports."""
    for node in statements(name):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative path"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module


def imported_names(name):
    """Returns what a module takes from others, by its full name."""
    return {
        f"{node.module}.{alias.name}"
        for node in statements(name)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.fixture(scope="module")
def edges():
    """Which modules of ours each of them imports."""
    return {name: {other for other in imported(name) if other in FILES and other != name} for name in FILES}


def room(name):
    return f"{name}.".split(".")[1]


def test_no_module_imports_itself_on_a_way_round(edges):
    left = dict(edges)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not {name: sorted(others & left.keys()) for name, others in left.items()}


def test_arrows_go_down(edges):
    unknown = {room(name) for name in FILES} - set(HOUSE)
    assert not unknown, f"say in HOUSE where these stand: {unknown}"
    place = {name: number for number, name in enumerate(HOUSE)}
    up = [(one, other) for one in FILES for other in edges[one] if place[room(other)] < place[room(one)]]
    assert not up


KNOWS = {
    "kernels": {"ops", "distributed", "errors"},
    "ops": {"errors", "words"},
    "trace": {"ops", "errors", "words"},
    "quant": {"kernels", "ops", "distributed", "qconfig", "errors", "words"},
    "show": {"report", "trace", "ops", "words"},
}
"""Rooms that know less than their place allows."""


@pytest.mark.parametrize("name", KNOWS)
def test_a_room_knows_only(name, edges):
    found = {room(other) for one in FILES if room(one) == name for other in edges[one]} - {name}
    assert found <= KNOWS[name]


def test_quantizers_know_no_graphs():
    assert not [
        name for name in FILES if room(name) == "quant" and any(f.startswith("torch.fx") for f in imported(name))
    ]


def test_machine_code_has_a_room_of_its_own():
    wing = ("llvmlite", "numba.extending", "numba.core")
    found = [name for name in FILES if any(other.startswith(wing) for other in imported(name))]
    assert found
    assert not [name for name in found if not name.startswith("dqconvert.kernels.cpu.")]
    loops = [name for name in FILES if "dqconvert.kernels.cpu.compiled.loop" in imported_names(name)]
    assert not [name for name in loops if not name.startswith("dqconvert.kernels.cpu.")]


def test_printing_a_module_loads_neither_files_nor_lowering(spare):
    code = """
import sys
import dqconvert
from torch_geometric.nn import GCNConv
print(dqconvert.prepare(GCNConv(8, 4)).module)
assert not [name for name in sys.modules if name.startswith(("dqconvert.checkpoint", "dqconvert.lower"))]
"""
    done = spare.run(code)
    assert done.returncode == 0, done.stderr


# -- docstrings --------------------------------------------------------------------------------------------------------

OTHER_STYLES = re.compile(
    r"^\s*(\*\*[A-Z]\w+\*\*|```|:(param|return|raises)\b|(Parameters|Returns)\n\s*---)", re.MULTILINE
)
UNSAID = re.compile(r"(What|Whether|Where|Which|How)\b")


def docstrings(name):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in (tree(name), *statements(name)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "the module"), isinstance(node, ast.FunctionDef), text


def odd(name):
    """Yields the docstrings of a module that are not of Google's style, or whose first line says nothing done."""
    for owner, is_function, text in docstrings(name):
        if OTHER_STYLES.search(text) or (is_function and UNSAID.match(text)):
            yield f"{name}, {owner}: {text.splitlines()[0]}"


@pytest.mark.parametrize("name", sorted({room(name) for name in FILES}))
def test_docstrings_are_of_one_style(name):
    found = list(itertools.chain.from_iterable(odd(one) for one in FILES if room(one) == name))
    assert not found, "\n".join(found)
