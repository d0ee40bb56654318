"""The pages for people: what they name exists, what they repeat is what it says elsewhere, README is short."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import dqconvert

ROOT = Path(__file__).parents[1]
_EXAMPLES = ("examples/GUIDE.md", "examples/BENCHMARKS.md", "examples/RESULTS.md")
PAGES = [page for page in ("README.md", "dqconvert/README.md", *_EXAMPLES) if (ROOT / page).exists()]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(page: str) -> str:
    """Returns a page without its blocks of code."""
    return FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))


def table(page: str, heading: str) -> list[list[str]]:
    """Returns the rows of the first table under a heading, as their cells."""
    section = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}, target


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_a_page_names_exist(page: str) -> None:
    """From the root, or from where the page lies: the map for maintainers names rooms from the package (``lower/``)."""
    written = re.findall(r"^```python file=(\S+)$", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name in re.findall(r"`([\w./]+/[\w./]*|[\w/]+\.(?:py|md|toml))`", prose(page)):
        if name in written:  # by its transcript
            continue
        places = [ROOT / name, (ROOT / page).parent / name]
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_that_a_page_names_exist(page: str) -> None:
    for name in re.findall(r"`(dqconvert(?:\.\w+)+)(?:\(.*?\))?`", prose(page)):
        assert found(name), name


def test_names_that_the_map_names_are_defined() -> None:
    files = [file for folder in ("dqconvert", "tests") for file in (ROOT / folder).rglob("*.py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    elsewhere = {"None", "GCN", "TORCHINDUCTOR_CACHE_DIR", "TorchFunctionMode"}
    for name in set(re.findall(r"`(_?[A-Z]\w+)`", prose("dqconvert/README.md"))) - elsewhere:
        assert re.search(rf"\b(class|def) {name}\b|^ *{name}\b.*=", code, flags=re.MULTILINE), name


def found(name: str) -> bool:
    """True if a dotted name can be imported, or is an attribute of what can be.

    Example:
        >>> found("dqconvert.lower.walk"), found("dqconvert.prepare"), found("dqconvert.nothing")
        (True, True, False)
    """
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[split:]:
                value = getattr(value, part)
        except AttributeError:
            return False
        return True
    return False


def test_the_readme_repeats_measurements_as_they_are() -> None:
    measured = {row[0].split(":")[0]: row[1:] for row in table("examples/BENCHMARKS.md", "Training")}
    measured |= {row[0].split(":")[0]: row[1:] for row in table("examples/BENCHMARKS.md", "Inference")}
    rows = table("README.md", "Speed")
    assert len(rows) >= 5
    for name, *figures in rows:
        training, inference = name.split(":")[0].split(", ")
        assert figures == [*measured[training][:2], *measured[inference][:2]]
    assert table("README.md", "Accuracy") == table("examples/RESULTS.md", "Planetoid")


def test_every_preset_has_a_line() -> None:
    named = {name for row in table("README.md", "Which preset when") for name in re.findall(r"`([\w+-]+)`", row[0])}
    assert named == set(dqconvert.presets)
