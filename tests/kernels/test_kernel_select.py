"""The exact selection of percentiles: always the k-th smallest of the sorted values, whichever way it takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels import minmax_pair, percentile_pair
from dqconvert.kernels.cpu import select
from dqconvert.kernels.cpu.select import FEW, Ends, Messages, Rows, percentiles, ranks
from dqconvert.kernels.minmax import _minmax_pair
from dqconvert.kernels.percentile import _percentile_pair

LARGEST = np.finfo(np.float32).max
SHARES = [0.0, 0.001, 0.01, 0.1, 0.4]


def by_hand(values, p) -> Ends:
    """By sorting."""
    finite = np.sort(values[np.abs(values) <= LARGEST])
    n, odd = len(finite), values.size - len(finite)
    if n == 0:
        return Ends(math.inf, -math.inf, 0, odd)
    return Ends(finite[max(1, int(n * p)) - 1], finite[min(n, max(1, int(n * (1 - p)))) - 1], n, odd)


def assert_within(got: Ends, want: Ends, bounds):
    """An end may be left open only where it is not beyond its bound."""
    assert (got.total, got.odd) == (want.total, want.odd)
    assert got.lo == want.lo or (got.lo is None and want.lo >= bounds[0])
    assert got.hi == want.hi or (got.hi is None and want.hi <= bounds[1])


def numbers(kind, shape, random, dtype=np.float32):
    x = random.standard_normal(shape)
    if kind == "few distinct":
        x = np.round(2 * x)
    elif kind == "after a ReLU":
        x = np.maximum(x, 0) * (random.random(shape) < 0.02)
    elif kind == "constant":
        x = np.full(shape, 0.7)
    elif kind == "sorted":
        x = np.sort(x, axis=None).reshape(shape)
    elif kind == "heavy tails":
        x = x / random.random(shape) ** 2
    elif kind == "not finite":
        x[random.random(shape) < 0.02] = np.nan
        x[random.random(shape) < 0.02] = np.inf
        x[random.random(shape) < 0.02] = -np.inf
    return x.astype(dtype)


KINDS = ["normal", "few distinct", "after a ReLU", "constant", "sorted", "heavy tails", "not finite"]
SIZES = [FEW - 1, FEW, FEW + 1, 3 * FEW]
"""Below, at and above the number of values that are simply all looked at."""


@st.composite
def rows_of(draw):
    """A matrix around the threshold, which rows are skipped, and how often each counts."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    columns = draw(st.sampled_from([1, 3, 16, 300]))
    rows = draw(st.sampled_from(SIZES)) // columns
    x = numbers(draw(st.sampled_from(KINDS)), (rows, columns), random, draw(st.sampled_from([np.float32, np.float64])))
    share = draw(st.sampled_from([None, 0.0, 0.3, 1.0]))
    skip = None if share is None else random.random(rows) < share
    weight = draw(st.sampled_from([None, 1, 5]))
    weight = None if weight is None else random.integers(0, weight + 1, rows)
    return x, skip, weight


def counted(x, skip, weight):
    kept = np.ones(len(x), np.bool_) if skip is None else ~skip
    return np.repeat(x[kept], 1 if weight is None else weight[kept], axis=0).reshape(-1)


@settings(max_examples=150)
@given(rows_of(), st.sampled_from(SHARES))
def test_rows_without_bounds(rows, p):
    values = counted(*rows)
    assert Rows(*rows).total == len(values)
    assert percentiles(Rows(*rows), p) == by_hand(values, p)


@settings(max_examples=150)
@given(rows_of(), st.sampled_from(SHARES), st.floats(0, 1), st.floats(0, 1))
def test_rows_with_carried_bounds(rows, p, one, two):
    """Bounds at values that occur, so that there are ties."""
    values = counted(*rows)
    finite = np.sort(values[np.abs(values) <= LARGEST])
    if len(finite) == 0:
        finite = np.zeros(1)
    lo, hi = sorted(finite[int(share * (len(finite) - 1))] for share in (one, two))
    bounds = float(lo), float(hi)
    assert_within(percentiles(Rows(*rows), p, bounds), by_hand(values, p), bounds)


@pytest.mark.parametrize("p", SHARES)
@pytest.mark.parametrize("size", SIZES)
def test_values_equal_to_the_bound_are_within_it(size, p):
    values = np.arange(size, dtype=np.float32).reshape(-1, 1)
    want = by_hand(values.reshape(-1), p)
    got = percentiles(Rows(values, None), p, (float(want.lo), float(want.hi)))
    assert got in ((None, None, size, 0), want)
    inside = percentiles(Rows(values, None), p, (float(want.lo) + 1, float(want.hi) - 1))
    assert inside == want
    only_low = percentiles(Rows(values, None), p, (float(want.lo) + 1, float(want.hi)))
    assert only_low.lo == want.lo


class Watched(Rows):
    """Remembers which way was taken."""

    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def sample(self, count):
        self.calls.append("sample")
        return super().sample(count)

    def beyond(self, lo, hi, room):
        found = super().beyond(lo, hi, room)
        self.calls.append("overflow" if found is None else "beyond")
        return found

    def all(self):
        self.calls.append("all")
        return super().all()


class TestWays:
    random = np.random.default_rng(0)

    def watch(self, x, p, bounds=None, skip=None, weight=None):
        rows = Watched(x, skip, weight)
        got = percentiles(rows, p, bounds)
        want = by_hand(counted(x, skip, weight), p)
        if bounds is None:
            assert got == want
        else:
            assert_within(got, want, bounds)
        return rows.calls

    def test_few_values_are_all_looked_at(self):
        assert self.watch(self.random.standard_normal((FEW, 1)), 0.01) == ["all"]

    def test_bounds_from_a_sample(self):
        assert self.watch(self.random.standard_normal((20_000, 10)), 0.001) == ["sample", "beyond"]

    def test_carried_bounds(self):
        assert self.watch(self.random.standard_normal((20_000, 10)), 0.001, (-2.5, 2.5)) == ["beyond"]

    def test_carried_bounds_far_inside_overflow(self):
        calls = self.watch(self.random.standard_normal((20_000, 10)), 0.001, (-0.1, 0.1))
        assert calls == ["overflow", "sample", "beyond"]

    def test_a_sample_that_tells_nothing(self):
        """All values that lie beyond what the sample says: the middle of the rows, where the sample is thin."""
        x = np.zeros((20_000, 10))
        x.reshape(-1)[1:-1:2] = self.random.standard_normal(99_999)  # the sample takes every 48th or 49th
        calls = self.watch(x, 0.3)
        assert calls[0] == "sample"

    def test_a_sample_without_values(self):
        x = np.full((20_000, 10), np.nan)
        x[7, 3], x[9, 4] = -1, 1
        assert self.watch(x, 0.001) == ["sample", "all"]

    def test_a_sample_that_misses_the_tail_is_found_out(self, monkeypatch):
        monkeypatch.setattr(Rows, "sample", lambda self, count: np.linspace(1, 2, count))
        x = self.random.standard_normal((20_000, 10))
        assert self.watch(x, 0.001)[-1] == "all"

    def test_ties_at_a_sampled_bound(self):
        """Nearly all zeros: the low percentile is the bound itself."""
        x = np.zeros((20_000, 10))
        x[::200, 0] = 1.0
        assert self.watch(x, 0.001) == ["sample", "beyond"]

    def test_carried_bounds_of_an_empty_range_are_none(self):
        calls = self.watch(self.random.standard_normal((20_000, 10)), 0.001, (math.inf, -math.inf))
        assert calls == ["sample", "beyond"]

    def test_no_room_is_written_beyond(self):
        """Rows that are wide and all beyond the bounds."""
        for columns in (1, 15, 16, 255, 256, 257, 1000, 20_000):
            x = self.random.standard_normal((200_000 // columns, columns)).astype(np.float32)
            self.watch(x, 0.001, (100.0, 200.0))
            self.watch(-x, 0.001, (-200.0, -100.0))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_on_one_thread_and_many(threads):
    random = np.random.default_rng(1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kind in KINDS:
            x = numbers(kind, (9000, 30), random)
            skip, weight = random.random(9000) < 0.2, random.integers(0, 9, 9000)
            for args in ((x, None), (x, skip), (x, skip, weight)):
                assert percentiles(Rows(*args), 0.001) == by_hand(counted(*args, *[None] * (3 - len(args))), 0.001)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "p", "want"), [(1, 0.0, (1, 1)), (1, 0.5, (1, 1)), (1000, 0.001, (1, 2)), (10, 0.3, (3, 4))]
)
def test_ranks_are_counted_from_either_end(count, p, want):
    assert ranks(count, p) == want


# -- products ------------------------------------------------------------------------------------------------------


@st.composite
def messages(draw):
    """Rows, weights and edges: more edges than nodes, nodes that send nothing, several heads."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    heads, channels = draw(st.sampled_from([(1, 1), (1, 16), (4, 8), (3, 1)]))
    nodes = draw(st.sampled_from([1, 40, 500]))
    edges = draw(st.sampled_from([0, 7, FEW // (heads * channels), 50_000 // (heads * channels)]))
    x = numbers(draw(st.sampled_from(KINDS)), (nodes, heads * channels), random)
    weight = numbers(
        draw(st.sampled_from(["normal", "few distinct", "constant", "not finite"])), (edges, heads), random
    )
    share = draw(st.sampled_from([None, 0.0, 0.3, 1.0]))
    skip = None if share is None else random.random(nodes) < share
    return x, weight, random.permutation(edges), random.integers(0, nodes, edges) ** 2 % nodes, skip


def made(x, weight, order, sender, skip) -> tuple[Messages, np.ndarray]:
    """The messages, and all products."""
    per_head = torch.from_numpy(x).view(len(x), weight.shape[1], -1)
    least, most = (end.numpy() for end in torch.aminmax(per_head, dim=2))
    kept = slice(None) if skip is None else ~skip[sender]
    products = (weight[order, :, None] * x.reshape(len(x), weight.shape[1], -1)[sender])[kept]
    return Messages(x, weight, order, sender, skip, least, most), products.reshape(-1)


@settings(max_examples=150)
@given(messages(), st.sampled_from(SHARES), st.floats(0, 1), st.floats(0, 1))
@pytest.mark.filterwarnings("ignore:invalid value")
def test_products(parts, p, one, two):
    values, products = made(*parts)
    want = by_hand(products, p)
    assert values.total == products.size
    assert percentiles(values, p) == want
    finite = np.sort(products[np.abs(products) <= LARGEST])
    if len(finite) == 0:
        finite = np.zeros(1)
    lo, hi = sorted(finite[int(share * (len(finite) - 1))] for share in (one, two))
    assert_within(percentiles(values, p, (float(lo), float(hi))), want, (lo, hi))


# -- the operators -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(rows_of(), st.sampled_from(SHARES), st.booleans())
def test_the_operators_are_their_definitions(rows, p, transposed):
    x, skip, _ = rows
    values = torch.from_numpy(x)
    values = values.t().contiguous().t() if transposed else values
    keep = None if skip is None else torch.from_numpy(~skip)
    assert percentile_pair(values, p, keep=keep) == _percentile_pair._init_fn(values, p, keep, 0, None, None)
    assert minmax_pair(values, keep=keep) == _minmax_pair._init_fn(values, keep, 0, None)


def test_strides_of_the_mask_do_not_matter():
    values, keep = torch.randn(40_000, 2), (torch.rand(80_000) < 0.5)[::2]
    assert percentile_pair(values, 0.01, keep=keep) == percentile_pair(values[keep], 0.01)


def test_the_threshold_is_where_these_tests_think():
    assert select.FEW == 4 * select.SAMPLE
    assert min(SIZES) < FEW < max(SIZES)


def test_outliers_may_all_lie_in_a_few_rows():
    """As those of one large graph in a batch do: every part has room for all that there is room for."""
    x = np.random.default_rng(0).standard_normal((40_000, 64)).astype(np.float32)
    x[:300] = 50
    found = Rows(x, None).beyond(-10.0, 10.0, 300 * 64)
    assert found is not None
    assert len(found.above) == 300 * 64
