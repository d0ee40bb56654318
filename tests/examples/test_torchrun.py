"""``examples/torchrun.py``: two processes started by torchrun, one of which is killed, and the run that goes on."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchrun

SCRIPT = Path(torchrun.__file__)


def test_every_rank_trains_on_as_many_nodes_and_together_on_all():
    data = torchrun.make_graph(501, seed=0)
    parts = [torchrun.seeds_of(data, 0, rank, 2, seed=0) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    assert torch.cat(parts).unique().tolist() == data.train_mask.nonzero()[:, 0].tolist()
    assert not torch.equal(torchrun.seeds_of(data, 1, 0, 2, seed=0), parts[0])


def started(checkpoint, *arguments):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    sizes = ["--nodes", "3000", "--batch-size", "128", "--epochs", "4", "--log-every", "1"]
    return subprocess.Popen(
        [*launch, str(SCRIPT), "--checkpoint", str(checkpoint), *sizes, *arguments],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process):
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


def refused(process):
    text = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    return text


@pytest.mark.study
def test_two_processes_train(tmp_path):
    text = finished(started(tmp_path / "run.pt", "--nodes", "400", "--epochs", "1"))
    assert "epoch 1/1 step 1/1" in text
    assert "sampled by" in text
    assert torch.load(tmp_path / "run.pt", weights_only=True)["epochs"] == 1


@pytest.mark.study
def test_a_killed_run_goes_on_to_where_it_would_have_ended(tmp_path):
    whole = finished(started(tmp_path / "whole.pt"))
    assert float(re.search(r"int8-dq: (\S+) %", whole).group(1)) > 30  # one in eight by chance
    # Ranges still move after so few steps, which takes further calls: test_settled_steps_say_so_once_per_level counts.
    assert int(re.search(r"collectives of the last step: (\d+)", whole).group(1)) > 2

    process, lines = started(tmp_path / "killed.pt"), []
    for line in process.stdout:
        lines.append(line)
        if "epoch 3/4 step 2/" in line:
            worker = next(re.search(r"rank 1 of 2 is process (\d+)", one) for one in lines if "rank 1 of" in one)
            os.kill(int(worker.group(1)), signal.SIGKILL)
            break
    text = "".join(lines) + process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert f"Signal 9 (SIGKILL) received by PID {worker.group(1)}" in text
    assert "rank 0: another process is gone; start again with --resume" in text
    assert "epoch 4/4" not in text

    assert "exists: go on from it with --resume" in refused(started(tmp_path / "killed.pt"))
    other = started(tmp_path / "killed.pt", "--resume", "--seed", "1")
    assert "is of a run with" in refused(other)

    text = finished(started(tmp_path / "killed.pt", "--resume"))
    assert "epochs 3 to 4" in text
    assert text.splitlines()[-1] == whole.splitlines()[-1]
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "killed.pt"))
    assert [name for name in one["module"] if not torch.equal(one["module"][name], two["module"][name])] == []
    assert one["optimizer"]["state"].keys() == two["optimizer"]["state"].keys()
    for key, state in one["optimizer"]["state"].items():
        assert all(torch.equal(value, two["optimizer"]["state"][key][name]) for name, value in state.items())
