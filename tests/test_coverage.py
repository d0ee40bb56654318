"""Every row of the coverage study: examples/coverage_table.py says what a row must show."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch_geometric.nn.conv

import coverage_table as study

ROWS = {f"{table}: {name}": (table, name, case) for table, name, case in study.rows()}


@pytest.mark.sample(36)
@pytest.mark.parametrize("row", ROWS)
def test_row(row):
    table, name, case = ROWS[row]
    found = study.examine(name, case, table)
    assert not found.error
    assert not found.missing
    assert found.traced
    assert found.identical
    assert found.trains == {"int8-dq": True, "int4-dq": True}
    assert found.evaluates
    assert found.passed
    # What stays in float is what the table says, and is explained.
    assert bool(found.stays_float) == bool(case.stays_float), found.stays_float
    assert not any("no second input" in remark for remark in found.remarks), found.remarks
    assert without_lines(study.markdown_line(found)) in PAGE, f"examples/COVERAGE.md is stale: {study.cells(found)}"


def without_lines(text):
    """Returns the text without the line numbers of source files, which differ between versions."""
    return re.sub(r"\.py:\d+", ".py", text)


PAGE = set(without_lines((Path(study.__file__).parent / "COVERAGE.md").read_text(encoding="utf-8")).splitlines())


def test_the_page_has_a_line_for_every_row():
    assert sum(line.startswith("| ") for line in PAGE) >= len(ROWS)


def test_every_layer_has_a_row_or_a_reason():
    exports = set(torch_geometric.nn.conv.__all__)
    with_row = {name.split(",")[0] for name in study.LAYERS}
    assert with_row | set(study.OUT_OF_REACH) == exports
    assert not with_row & set(study.OUT_OF_REACH)
    assert len(study.OUT_OF_REACH) <= 11


def test_every_aggregation_has_a_row():
    exports = set(torch_geometric.nn.aggr.__all__) - {"Aggregation"}
    assert exports <= {name.split(",")[0] for name in study.POOLING}


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "GraphNorm", "PairNorm", "InstanceNorm", "GraphSizeNorm"])
def test_every_norm_has_a_row(name):
    assert f"GCN, {name}" in study.MODELS


NEEDED = {
    "CuGraphSAGEConv": (8, 4),
    "CuGraphGATConv": (8, 4),
    "CuGraphRGCNConv": (8, 4, 2),
    "GravNetConv": (8, 4, 3, 5, 3),
    "DynamicEdgeConv": (torch.nn.Identity(), 3),
    "XConv": (8, 4, 3, 3),
    "SplineConv": (8, 4, 2, 3),
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_out_of_reach_cannot_be_built(name):
    """Where an extension is there, the layer runs, and belongs into the table."""
    with pytest.raises(ImportError):
        getattr(torch_geometric.nn.conv, name)(*NEEDED[name])


def test_sizes_tell_everything_apart():
    """No two numbers of a size are equal, and none is shared by the two sizes."""
    numbers = [list(vars(size).values())[:-1] for size in (study.SMALL, study.LARGE)]
    assert len({*numbers[0], *numbers[1]}) == len(numbers[0]) + len(numbers[1])
    for size in (study.SMALL, study.LARGE):
        nodes, edges = size.hops
        assert (sum(nodes), sum(edges)) == (size.nodes, size.edges)


# -- what the study says of models that do not pass ----------------------------------------------------------------


class Broken(torch.nn.Module):
    """Depends on a value in a way that no graph can hold."""

    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(study.WIDTH, study.CLASSES)

    def forward(self, x, edge_index):
        return self.lin(x) if x.sum() > 0 else self.lin(-x)


def test_a_model_that_does_not_convert_is_a_row_with_a_reason():
    found = study.examine("Broken", study.Case(Broken))
    assert not found.passed
    assert not found.traced
    assert found.error.startswith("TraceError: ")
    assert study.cells(found)[1] == "NO"


def test_missing_messages_are_told():
    found = study.examine("Linear", study.Case(lambda: torch.nn.Linear(study.WIDTH, 2), "*x"))
    assert found.identical
    assert found.missing == ["message", "aggregate"]
    assert not found.passed


# -- what it prints ------------------------------------------------------------------------------------------------


def test_it_prints_a_table(capsys):
    assert study.main(["LGConv", "SchNet*"]) == 0
    out = capsys.readouterr().out
    assert "LGConv" in out
    assert "2 of 2 pass" in out
    assert "WLConv" in out


def test_it_prints_json(capsys):
    assert study.main(["LGConv", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["name"] == "LGConv"
    assert found["passed"]
    assert found["quantizers"]["message"] == 1


def test_it_prints_markdown(capsys):
    assert study.main(["LGConv", "MLP", "--markdown"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    per_table = {line.count("|") for line in lines if "needs" not in line}
    assert len(study.HEADINGS) + 1 in per_table
    assert any(line.startswith("| LGConv | yes | yes | yes | yes | yes |") for line in lines)


def test_an_unknown_row_is_an_error(capsys):
    with pytest.raises(SystemExit):
        study.main(["NoSuchConv"])
    assert "NoSuchConv" in capsys.readouterr().err
