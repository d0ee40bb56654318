"""How much work `prepare` does, counted in calls, which no other work on the machine changes."""

import sys

from torch_geometric.nn import GCN

import dqconvert


def calls(layers):
    """How many functions, Python's and compiled ones, are called to prepare a model."""
    model, count = GCN(16, 32, layers, 7), 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        dqconvert.prepare(model)
    finally:
        sys.setprofile(before)
    return count


def test_a_two_layer_gcn_takes_at_most_so_many_calls():
    """Measured: 312,500."""
    calls(2)  # imports
    assert calls(2) <= 343_000


def test_work_grows_linearly_with_layers():
    few, many = calls(4), calls(8)
    assert many <= 2.2 * few
