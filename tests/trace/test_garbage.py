"""Preparing a model leaves the garbage collector as it was, whatever the program has told it."""

import gc

import pytest
from torch_geometric.nn import GCNConv

import dqconvert
from dqconvert import TraceError


@pytest.fixture(autouse=True)
def _thawed():
    gc.unfreeze()  # what was there before the tests, see tests/conftest.py
    yield
    gc.freeze()


@pytest.fixture
def frozen():
    gc.freeze()
    yield gc.get_freeze_count()
    gc.unfreeze()


def test_nothing_stays_frozen():
    dqconvert.prepare(GCNConv(8, 4))
    assert gc.get_freeze_count() == 0
    with pytest.raises(TraceError):
        dqconvert.prepare(GCNConv(8, 4), None, ("no graph",))
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()


def test_what_the_program_froze_stays_frozen(frozen):
    dqconvert.prepare(GCNConv(8, 4))
    assert 0 < gc.get_freeze_count() <= frozen
