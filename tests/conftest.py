"""Fixtures shared by the tests."""

import copy
import functools
import os

import pytest
import torch

import dqconvert
import zoo


def pytest_configure():
    """Workers share the cores: each with as many threads as there are cores would only wait for the others."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@functools.cache
def _prepared_once(name, qconfig):
    case = zoo.CASES[name]
    return dqconvert.prepare(case.model(), qconfig, case.inputs())


@pytest.fixture
def prepared():
    """``prepared(name, qconfig)``: a model of the zoo, prepared once per test run and copied for each test."""

    def get(name, qconfig="int8-dq"):
        module, report = _prepared_once(name, qconfig)
        return copy.deepcopy(module), report

    return get
