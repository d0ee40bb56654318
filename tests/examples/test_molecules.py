"""The experiment on molecules, on made-up ones, and on SMILES where rdkit is."""

from __future__ import annotations

import json

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils.smiles import e_map, x_map

import molecules


def made_up(number: int = 40) -> list[Data]:
    """Chains whose value is the number of their first atoms' kind."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(number):
        atoms = 4 + index % 5
        x = torch.stack([torch.randint(min(len(v), 3), (atoms,), generator=generator) for v in x_map.values()], 1)
        row = torch.arange(atoms - 1)
        edge_index = torch.cat([torch.stack([row, row + 1]), torch.stack([row + 1, row])], 1)
        columns = [torch.randint(len(v), (edge_index.size(1),), generator=generator) for v in e_map.values()]
        found.append(Data(x=x, edge_index=edge_index, edge_attr=torch.stack(columns, 1), y=x[:, 0].sum().float()))
    return molecules.standardized(found)


def test_values_are_standardized() -> None:
    y = torch.cat([molecule.y for molecule in made_up()])
    assert y.mean().item() == pytest.approx(0, abs=1e-6)
    assert y.std().item() == pytest.approx(1)


def test_parts_of_a_split_are_apart_and_follow_the_seed() -> None:
    found = made_up()
    split, other = molecules.split_of(found, 0), molecules.split_of(found, 1)
    sizes = [len(part) for part in (split.train, split.validation, split.test)]
    assert sizes == [32, 4, 4]
    assert len({id(m) for part in (split.train, split.validation, split.test) for m in part}) == 40
    assert {id(m) for m in split.test} != {id(m) for m in other.test}


@pytest.mark.study
@pytest.mark.parametrize("layer", molecules.MODELS)
def test_a_run(layer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(molecules, "load", lambda root, name, limit: made_up())
    epochs = ["--float-epochs", "3", "--epochs", "2", "--seeds", "1"]
    molecules.main(["--root", "x", "--model", layer, *epochs, "--preset", "int8-ptq", "--json"])
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [row["preset"] for row in runs] == ["float", "float + 2 epochs", "int8-ptq"]
    assert runs[2]["integer"] == pytest.approx(runs[2]["test"], rel=0.02)


def test_smiles() -> None:
    pytest.importorskip("rdkit")
    ethanol = molecules.penalized("CCO", -1.5)
    assert (ethanol.num_nodes, ethanol.num_edges, ethanol.y.item()) == (3, 4, -1.5)


def test_without_rdkit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def no_rdkit(*args: object) -> None:
        raise ImportError("rdkit")

    monkeypatch.setattr(molecules, "MoleculeNet", no_rdkit)
    with pytest.raises(SystemExit, match="pip install 'dqconvert\\[examples\\]'"):
        molecules.load(str(tmp_path), "ESOL", None)
