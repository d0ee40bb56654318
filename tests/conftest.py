"""Fixtures shared by the tests. Who starts workers runs none itself, and would import torch before they begin."""

from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
import tempfile
from collections import Counter

import pytest

from spare import Spare

COMPILED = pytest.StashKey[str]()


def pytest_configure(config):
    """What torch.compile kept on disk may be of other code: its key does not know of the backward of an operator."""
    if not hasattr(config, "workerinput"):  # workers have the folder of who started them
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = config.stash.setdefault(COMPILED, tempfile.mkdtemp())
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        gc.disable()  # till all is imported: see below
        _prepare_libraries()


def _prepare_libraries():
    import torch
    from hypothesis import HealthCheck, settings

    # No test depends on how fast a machine is: the first example may compile a loop, and others may be at work.
    settings.register_profile("dqconvert", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("dqconvert")
    if not torch.accelerator.is_available():
        # For each device that nobody has, torch keeps every seed until its first use, with a printed stack: half a
        # millisecond and 15 kB a call, of which there are some twenty thousand.
        torch.manual_seed = torch.default_generator.manual_seed
    # Workers share the cores: each with as many threads as there are cores would only wait for the others.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_collection_finish():
    """Keeps the garbage collector from what is there by now: a second each time, for none of it ever goes."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 30)  # what is left is small, and it would go through all of that ten times as often
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Marks the cases of a test with a ``sample`` mark that are not of the sample as a study."""
    met = Counter()
    for item in items:
        mark = item.get_closest_marker("sample")
        if mark is None:
            continue
        (every,), keep = mark.args, mark.kwargs.get("keep", ())
        test = item.nodeid.partition("[")[0]
        if met[test] % every and item.callspec.id not in keep:
            item.add_marker(pytest.mark.study)
        met[test] += 1


def pytest_unconfigure(config):
    if (folder := config.stash.get(COMPILED, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def spare(tmp_path_factory):
    """``spare.run(code)``: a process of its own that has imported torch and PyG, and nothing of ours."""
    imports = "import numba, rich, safetensors.torch, torch, torch_geometric.nn, typer"
    started = Spare(imports, tmp_path_factory.mktemp("bytecode"))
    yield started
    started.close()


@functools.cache
def _prepared_once(name, qconfig):
    import dqconvert
    import zoo

    case = zoo.CASES[name]
    return dqconvert.prepare(case.model(), qconfig, case.inputs())


@pytest.fixture
def prepared():
    """``prepared(name, qconfig)``: a model of the zoo, prepared once per test run and copied for each test."""

    def get(name, qconfig="int8-dq"):
        module, report = _prepared_once(name, qconfig)
        return copy.deepcopy(module), report

    return get
