"""``examples/sampled.py``: a graph on disk, sampled, trained on, and a run that goes on where it stopped."""

import re

import pytest
import torch

import dqconvert
import sampled
from sampling import NeighborSamples, link_batch

SIZES = ["--nodes", "600", "--features", "16", "--hidden", "16", "--batch-size", "64", "--neighbors", "4", "3"]


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one == two


def test_a_stopped_run_goes_on_to_where_it_would_have_ended(tmp_path, capsys):
    data = ["--data", str(tmp_path / "graph"), *SIZES, "--epochs", "2", "--log-every", "1"]
    data += ["--infer", str(tmp_path / "store")]
    sampled.main([*data, "--checkpoint", str(tmp_path / "whole.pt")])
    whole = capsys.readouterr().out
    assert "sampled by" in whole
    assert "epoch 2/2 step 5/5" in whole
    stopped = [*data, "--checkpoint", str(tmp_path / "stopped.pt")]
    sampled.main([*stopped, "--stop-after", "3"])
    assert "epoch 1/2 step 4" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="go on from it with --resume"):
        sampled.main(stopped)
    with pytest.raises(SystemExit, match="is of a run with"):
        sampled.main([*stopped, "--resume", "--lr", "0.1"])
    sampled.main([*stopped, "--resume"])
    found = capsys.readouterr().out
    assert "goes on after 3 steps" in found
    assert "by all neighbours" in found
    assert found.splitlines()[-3:-1] == whole.splitlines()[-3:-1]  # accuracies
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "stopped.pt"))
    assert same(one, two)


def test_the_graph_stays_on_disk_and_is_written_once(tmp_path):
    sizes = {"nodes": 500, "edges": 5_000, "features": 4, "seed": 0}
    sampled.make_graph(tmp_path, **sizes)
    data = sampled.open_graph(tmp_path)
    assert data.x.shape == (500, 4)
    assert data.edge_index.shape == (2, 5_000)
    assert 0 <= data.edge_index.min() <= data.edge_index.max() < 500
    before = (tmp_path / "x.npy").stat().st_mtime_ns
    sampled.make_graph(tmp_path, **sizes)
    assert (tmp_path / "x.npy").stat().st_mtime_ns == before
    sampled.make_graph(tmp_path, **{**sizes, "nodes": 400})
    assert sampled.open_graph(tmp_path).x.shape == (400, 4)


def test_links_have_their_ends_in_the_batch(tmp_path):
    sampled.make_graph(tmp_path, 300, 3_000, 8, 0)
    data = dqconvert.DegreeProtection()(sampled.open_graph(tmp_path))
    loader = NeighborSamples(data, (3, 2), torch.arange(300), 32)
    links = data.edge_index[:, 5:45]
    batch = link_batch(loader, links)
    assert torch.equal(batch.n_id[batch.edge_label_index], links)
    assert torch.equal(batch.protect_prob, data.protect_prob[batch.n_id])

    model = sampled.GraphSAGE(8, 16, num_layers=2, out_channels=4)
    module, _ = dqconvert.prepare(model, "int8-dq", sampled.inputs_of(batch))
    for begin in (0, 100):
        batch = link_batch(loader, data.edge_index[:, begin : begin + 30])
        out = module(**sampled.inputs_of(batch), protect_prob=batch.protect_prob)
        score = (out[batch.edge_label_index[0]] * out[batch.edge_label_index[1]]).sum(dim=1)
        torch.nn.functional.softplus(-score).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.idle
def test_two_million_nodes_stay_on_disk(tmp_path, capsys):
    sizes = ["--nodes", "2000000", "--edges", "20000000", "--measure", "30"]
    sampled.main(["--data", str(tmp_path), *sizes])
    found = capsys.readouterr().out
    assert float(re.search(r"ratio (\S+)", found).group(1)) <= 2.0  # the aim is 1.1; 1.7 on one thread, 2026-12-01
    assert float(re.search(r"peak memory: (\S+) GiB", found).group(1)) <= 6
