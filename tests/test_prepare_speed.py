"""How long `prepare` takes: bounds wide enough for a busy machine, narrow enough to notice quadratic work."""

import time

from torch_geometric.nn import GCN

import dqconvert


def seconds(layers):
    """The faster of two runs."""
    times = []
    for _ in range(2):
        model = GCN(16, 32, layers, 7)
        start = time.process_time()  # others may be at work on the same cores
        dqconvert.prepare(model)
        times.append(time.process_time() - start)
    return min(times)


def test_a_two_layer_gcn_takes_at_most_a_second():
    seconds(2)  # imports
    assert seconds(2) <= 1.0


def test_time_grows_linearly_with_layers():
    few, many = seconds(15), seconds(30)
    assert many <= 2.8 * few
