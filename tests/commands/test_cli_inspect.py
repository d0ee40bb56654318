"""``dqconvert inspect``: every form, readable at 80 columns, from the file alone."""

import json
import re

import pytest
import torch
from torch_geometric.nn import GIN
from typer.testing import CliRunner

import dqconvert
import zoo
from dqconvert.cli import app

KWARGS = {"in_channels": 16, "hidden_channels": 32, "num_layers": 5, "out_channels": 4}
FACTORY = ["--model", "torch_geometric.nn:GIN", "--kwargs", json.dumps(KWARGS)]


def trained_gin(steps=1):
    module = dqconvert.prepare(GIN(**KWARGS), "int8-dq").module
    for _ in range(steps):
        module.train()(torch.randn(9, 16), torch.randint(9, (2, 30))).sum().backward()
    return module


@pytest.fixture(scope="module")
def gin(tmp_path_factory):
    """A five-layer GIN's prepared file."""
    path = tmp_path_factory.mktemp("gin") / "gin.dq"
    dqconvert.save(trained_gin(), path, factory="torch_geometric.nn:GIN", kwargs=KWARGS)
    return path


def dq(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="dqconvert")


def shown(*args):
    result = dq("inspect", *args)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout  # no colour where it is piped
    return result.stdout


def refused(*args):
    result = dq("inspect", *args)
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr.rstrip("\n")


# -- the tree ------------------------------------------------------------------------------------------------------


def test_a_five_layer_gin_fits_a_screen_and_a_half(gin):
    lines = shown(gin).splitlines()
    assert len(lines) <= 75
    assert max(map(len, lines)) <= 80


def test_the_tree_names_every_quantizer_with_role_level_bits_and_range(gin):
    lines = shown(gin, "--graph").splitlines()
    assert lines[0] == "GIN: 45 quantizers (8-bit), protection 0 to 0.1"
    inserted = [line.partition("+ ")[2] for line in lines if "+ " in line]
    pattern = r"(\w+) +(node|edge|graph|param) +[su]8 \[\S+, \S+\]"
    roles = [match[1] for text in inserted if (match := re.fullmatch(pattern, text))]
    expected = {"message": 5, "aggregate": 5, "weight": 10, "input": 10, "feature": 10, "update": 5}
    assert {role: roles.count(role) for role in set(roles)} == expected


def test_the_tree_shows_layers_stages_and_operations(gin):
    text = shown(gin)
    layer = text[text.index("convs.1 (GINConv)") : text.index("convs.2 (GINConv)")]
    found = [line.strip("│ ").split("  ")[0] for line in layer.splitlines()]
    assert found[:4] == ["convs.1 (GINConv)", "message", "aggregate", "add, mul, add"]
    assert "nn.lins.0  linear" in layer
    assert "unchanged" not in text  # checks are not what the model does


def test_ranges_appear_once_observed():
    assert "[" not in str(trained_gin(steps=0))
    assert "[" in str(trained_gin(steps=1))


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", zoo.CASES)
def test_every_model_has_a_tree_with_every_quantizer(name, prepared):
    module, report = prepared(name)
    text = str(module)
    assert max(map(len, text.splitlines())) <= 80
    for role, count in report.totals["role"].items():
        assert len(re.findall(rf"\+ {role}(_\d+)? ", text)) == count, text


def test_a_layer_that_is_called_twice_is_shown_twice(prepared):
    text = str(prepared("Tied")[0])
    assert "conv (GCNConv)" in text
    assert "conv (GCNConv, call 2)" in text


class Own(torch.nn.Module):
    def forward(self, x, protected):
        return x


def test_a_quantizer_of_the_users_own_is_shown():
    config = dqconvert.QConfig(weight=dqconvert.QSpec(), rules=[dqconvert.Rule(role="message", spec=Own)])
    text = str(dqconvert.prepare(GIN(6, 8, 1), config).module)
    assert re.search(r"\+ message +edge +own", text)


# -- the other forms -----------------------------------------------------------------------------------------------


def test_code_is_the_generated_forward(gin):
    text = shown(gin, "--code")
    assert text.startswith("def forward(self, x, edge_index")
    assert "quant.message(" in text
    assert max(map(len, text.splitlines())) <= 110
    compile(text, "forward", "exec")


def test_code_shows_both_modes_where_they_differ(tmp_path, prepared):
    dqconvert.save(prepared("NoisyInTraining")[0], tmp_path / "a.dq")
    text = shown(tmp_path / "a.dq", "--code")
    assert text.index("# training") < text.index("randn_like") < text.index("# evaluation")


def test_report_is_the_table(gin):
    text = shown(gin, "--report")
    assert "GIN: 45 quantizers" in text
    assert "convs.4.quant.aggregate" in text
    assert max(map(len, text.splitlines())) <= 80


def test_diff_has_both_graphs_side_by_side(gin):
    rows = [line.split(" | ") for line in shown(gin, "--diff").splitlines()]
    assert [cell.strip() for cell in rows[0]] == ["float", "rewritten"]
    pairs = [(left.strip(), right) for left, right in (row for row in rows if len(row) == 2)]
    assert ("convs.0.nn.lins.0", "convs.0.nn.lins.0: linear") in pairs
    assert sum(right.startswith("+ ") for _, right in pairs) == 46
    assert all(left == "" for left, right in pairs if right.startswith("+ "))


def test_json_has_all_of_it_under_stable_keys(gin):
    found = json.loads(shown(gin, "--json"))
    assert list(found) == [
        *("kind", "model", "method", "factory", "kwargs", "versions", "qconfig", "protections", "modules"),
        *("report", "quantizers", "graphs", "methods"),
    ]
    assert found["factory"] == "torch_geometric.nn:GIN"
    assert found["kwargs"] == KWARGS
    assert len(found["quantizers"]) == 45
    assert set(found["graphs"]) == {"train", "float_train"}
    first = found["quantizers"][0]
    assert {"path", "role", "level", "bits", "signed", "range", "channels"} <= set(first)
    assert first["range"][0] < first["range"][1]
    node = found["graphs"]["train"][0]
    assert {"name", "kind", "label", "target", "module", "stage", "source", "shape", "inputs"} <= set(node)


def test_a_float_checkpoint_is_shown_as_it_would_be_converted(tmp_path):
    torch.save(GIN(**KWARGS).state_dict(), tmp_path / "gin.pt")
    text = shown(tmp_path / "gin.pt", *FACTORY, "--qconfig", "int4-dq")
    assert text.startswith("GIN: 45 quantizers (4-bit)")
    assert [path.name for path in tmp_path.iterdir()] == ["gin.pt"]


# -- the page ------------------------------------------------------------------------------------------------------


def test_the_page_replaces_nothing_unasked(gin, tmp_path):
    page = tmp_path / "gin.html"
    assert "open it in a browser" in shown(gin, "--html", page)
    assert refused(gin, "--html", page).endswith("exists already: pass --force to replace it.")
    shown(gin, "--html", page, "--force")


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(gin, tmp_path):
    assert refused(tmp_path / "gone.dq").endswith("gone.dq: there is no such file.")
    torch.save(GIN(**KWARGS).state_dict(), tmp_path / "gin.pt")
    assert "If it is a float checkpoint, say what builds its model, with --model" in refused(tmp_path / "gin.pt")
    damaged = bytearray(gin.read_bytes())
    damaged[-100] ^= 1
    (tmp_path / "damaged.dq").write_bytes(damaged)
    assert "its checksum does not fit its contents" in refused(tmp_path / "damaged.dq")
    assert "does not exist" in refused(gin, "--html", tmp_path / "missing" / "page.html")


def test_one_form_at_a_time(gin):
    assert dq("inspect", gin, "--code", "--report").exit_code == 2
    assert dq("inspect").exit_code == 2
