"""What runs loops on several threads: how rows are cut, who takes which part, what comes of errors and forks."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time

import pytest
import torch
from chain_cases import INT4, NEVER, as_ranges
from hypothesis import given
from hypothesis import strategies as st

from dqconvert.kernels import Chain, Ranged, Sent, edge_order, propagate, quantize_chain, quantize_linear
from dqconvert.kernels.cpu import threads as threads_module
from dqconvert.kernels.cpu.threads import GRAIN, balanced, parts, run


@contextlib.contextmanager
def on(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_covers(cuts, rows):
    """Every row once, in order; at least one part."""
    assert cuts[0][0] == 0
    assert cuts[-1][1] == rows
    assert all(start <= stop for start, stop in cuts)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(cuts))


# -- cuts ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(0, 200 * GRAIN), st.integers(1, 9))
def test_parts_cover_every_row_once(rows, values, threads):
    with on(threads):
        assert_covers(parts(rows, values), rows)


@given(st.lists(st.sampled_from([0, 0, 1, 2, 1000]), max_size=40), st.sampled_from([0, 1, 16, 5000]), st.integers(1, 9))
def test_balanced_parts_cover_every_row_once(counts, columns, threads):
    ptr = torch.tensor([0, *counts]).cumsum(0).numpy()
    with on(threads):
        assert_covers(balanced(ptr, columns), len(counts))


def test_little_work_is_not_cut(threads):
    assert parts(1000, 2 * GRAIN - 1) == [(0, 1000)]
    assert len(parts(1000, 2 * GRAIN)) == min(threads, 2)
    assert parts(1, 100 * GRAIN) == [(0, 1)], "a row is not cut"
    assert balanced(torch.arange(100).numpy(), 16) == [(0, 99)]


def test_much_work_is_cut_into_a_few_ever_smaller_parts_for_each_thread(threads):
    cuts = parts(1_000_000, 100 * GRAIN)
    sizes = [stop - start for start, stop in cuts]
    if threads == 1:
        assert len(cuts) == 1
    else:
        assert len(cuts) % threads == 0
        assert len(cuts) > threads
        assert sizes[-1] < sizes[0] / 4
        assert all(after <= before + 1 for before, after in itertools.pairwise(sizes))


def test_balanced_parts_have_the_work_that_parts_have():
    """A few nodes have nearly all edges."""
    ptr = torch.tensor([0] + [100] * 1000 + [1] * 99_000).cumsum(0).numpy()
    with on(2):
        work = [ptr[stop] - ptr[start] for start, stop in balanced(ptr, 64)]
        want = [stop - start for start, stop in parts(len(ptr), int(ptr[-1]) * 64)]
    assert len(work) == len(want) > 2
    for got, even in zip(work, want, strict=True):
        assert got / sum(work) == pytest.approx(even / sum(want), abs=0.01)


# -- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_results_are_in_the_order_of_the_parts(count, threads):
    cuts = [(i, i + 1) for i in range(count)]

    def task(part, start, stop):
        time.sleep(0.002 * (count - part) % 0.007)  # the first is not the first to end
        return part, start, stop

    assert run(task, cuts) == [(i, i, i + 1) for i in range(count)]


def test_who_is_done_takes_the_next_part():
    """One part waits until all others are done, which is for ever if they were dealt out beforehand."""
    done, left = [], threading.Event()

    def task(part, start, stop):
        if part == 0:
            assert left.wait(30)
        done.append(part)
        if len(done) == 9:
            left.set()

    with on(2):
        run(task, [(i, i + 1) for i in range(10)])
    assert done == [*range(1, 10), 0]


@pytest.mark.parametrize("wrong", range(4))
def test_an_error_in_any_part_is_raised_when_all_threads_have_ended(wrong):
    started, ended = [], []

    def task(part, start, stop):
        started.append(part)
        if part == wrong:
            raise RuntimeError(f"in part {wrong}")
        time.sleep(0.05)
        ended.append(part)

    with on(4), pytest.raises(RuntimeError, match=f"in part {wrong}"):
        run(task, [(i, i + 1) for i in range(4)])
    assert sorted([*ended, wrong]) == sorted(started), "nobody still writes into what the caller gives up"
    with on(4):
        assert run(lambda part, *_: part, [(0, 1)] * 5) == list(range(5)), "the threads go on"


def test_errors_in_several_parts_are_one():
    def task(part, start, stop):
        raise RuntimeError("in every part")

    with on(4), pytest.raises(RuntimeError, match="in every part"):
        run(task, [(i, i + 1) for i in range(8)])


def test_nobody_waits_for_a_thread_that_comes_too_late():
    """All threads are busy elsewhere: the caller does everything, and goes on."""
    began, free = threading.Event(), threading.Event()

    def busy(part, start, stop):
        began.set()
        assert free.wait(30)

    with on(2):
        other = threading.Thread(target=run, args=(busy, [(0, 1)] * 2))
        crew = threads_module._crew
        other.start()
        assert began.wait(30)
        while crew._jobs.qsize() > 0:  # the helper has come to the first job, too
            time.sleep(0.001)
        ends = []
        last = threading.Thread(target=lambda: ends.extend(run(lambda part, *_: part, [(0, 1)] * 5)))
        last.start()
        last.join(20)
        free.set()
        other.join(30)
    assert ends == list(range(5))


def summed(x, weight, index):
    """Everything that is added up part by part: a bias' gradient, a weight's, alpha's; and sums over edges."""
    sender, receiver = index
    orders = edge_order(receiver, sender, len(x)), edge_order(sender, receiver, len(x))
    bias, alpha = torch.zeros(16, requires_grad=True), torch.ones(1, requires_grad=True)
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    never = as_ranges(NEVER)
    rows, *_ = quantize_linear(x, weight, None, Chain.of((INT4, INT4, None), never * 2, bias=bias))
    y, *_ = propagate(Sent.of(rows, None, sender, receiver, *orders), Ranged.of(INT4, never))
    y, _ = quantize_chain(y, Chain.of((INT4, None, None), never, other=rows, alpha=alpha))
    return y.detach(), *torch.autograd.grad(y, (x, weight, bias, alpha), x[:, :16].detach())


def test_sums_are_the_same_whichever_thread_is_faster(monkeypatch):
    x, weight, index = torch.randn(30_000, 24), torch.randn(16, 24), torch.randint(30_000, (2, 60_000))
    plain_run = threads_module.run

    def delayed(task, cuts):
        def late(part, start, stop):
            time.sleep(0.001 * ((part + 1) * seed % 4))
            return task(part, start, stop)

        return plain_run(late, cuts)

    with on(3):
        want = summed(x, weight, index)
        for name in ("cpu.chain", "cpu.propagate", "linear"):
            monkeypatch.setattr(sys.modules[f"dqconvert.kernels.{name}"], "run", delayed)
        for seed in (1, 2, 3):  # noqa: B007
            assert all(map(torch.equal, summed(x, weight, index), want))


def test_kernels_run_from_many_threads_at_once():
    x = torch.randn(6000, 30)
    want, _ = quantize_chain(x, Chain.of((None, INT4, None), as_ranges(NEVER), relu=True))
    got = [None] * 4

    def work(i):
        for _ in range(5):
            got[i] = quantize_chain(x, Chain.of((None, INT4, None), as_ranges(NEVER), relu=True))[0]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(one, want) for one in got)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kernels_run_after_a_fork():
    x = torch.randn(6000, 30)
    with on(2):
        want, _ = quantize_chain(x, Chain.of((None, INT4, None), as_ranges(NEVER)))
    before = threads_module._crew
    assert before._size > 0
    child = os.fork()
    if child == 0:
        try:
            cuts = [(0, 3), (3, 6)]
            same = run(lambda part, start, stop: stop, cuts) == [3, 6]
            os._exit(0 if same and threads_module._crew is not before else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(quantize_chain(x, Chain.of((None, INT4, None), as_ranges(NEVER)))[0], want)
