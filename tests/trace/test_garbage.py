"""Preparing a model leaves the garbage collector as it was, whatever the program has told it."""

import gc

import pytest
from torch_geometric.nn import GCNConv

import dqconvert
from dqconvert import TraceError
from dqconvert.trace import garbage


@pytest.fixture(autouse=True)
def _thawed(monkeypatch):
    monkeypatch.setattr(garbage, "ASKED_EVERY", 0.0)
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


def test_what_is_frozen_is_not_counted_each_time(frozen, monkeypatch):
    """A program that froze a million objects waited for it longer than for all the rest."""
    counted, count = [], gc.get_freeze_count
    monkeypatch.setattr(garbage, "ASKED_EVERY", 3600.0)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counted.append(1) or count())
    for _ in range(3):
        dqconvert.prepare(GCNConv(8, 4))
    assert len(counted) <= 1
