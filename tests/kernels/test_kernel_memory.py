"""`Memory`: a result is returned again for the same, and computed again for anything else."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import NamedTuple

import pytest
import torch

from dqconvert.kernels.memory import Memory


class Reversed:
    """A function that counts its calls; its results are a tensor and a view of it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, index, *more):
        self.calls += 1
        both = torch.stack([index.flip(-1), index])
        return both, both[0]


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def function():
    return Reversed()


def index(size=30):
    return torch.randint(9, (size,))


# -- what is the same ------------------------------------------------------------------------------------------------


def test_the_same_values_in_another_tensor(memory, function):
    one = index()
    first = memory.recall("key", function, one, 3, None)
    for other in (one, one.clone(), torch.stack([one, one], 1)[:, 0], one.detach()):
        assert memory.recall("key", function, other, 3, None) is first
    assert (function.calls, memory.computed, len(memory)) == (1, 1, 1)


@pytest.mark.parametrize("write", ["torch", "numpy"])
def test_values_that_were_written_over(memory, function, write):
    one = index()
    first = memory.recall("key", function, one)
    values = one.clone()
    if write == "torch":
        one[3] += 1
    else:
        one.numpy()[3] += 1  # which torch does not notice
    assert torch.equal(memory.recall("key", function, one)[1], one.flip(0))
    assert memory.recall("key", function, values) is first


def test_a_version_that_went_up_is_not_another_value(memory, function):
    one = index()
    first = memory.recall("key", function, one)
    one.add_(1).sub_(1)
    assert memory.recall("key", function, one) is first


def test_anything_else_is_another(memory, function):
    one = index()
    calls = [(one,), (one.int(),), (one.view(5, 6),), (one[:-1],), (one, 1), (one, 1.0), (one, True), (one, None)]
    for number, given in enumerate([*calls, (one, one), (one, "1")], start=1):
        memory.recall("key", function, *given)
        assert function.calls == number
    memory.recall("other key", function, one)
    assert function.calls == number + 1


def test_its_own_results_are_known_by_where_they_lie(memory, function):
    one = index()
    both, view = memory.recall("key", function, one)
    first = memory.recall("next", function, both[0])
    for same in (both[0], view, both[0].clone()):
        assert memory.recall("next", function, same) is first
    assert memory.recall("next", function, both[1]) is not first
    both[0, 2] += 1
    assert torch.equal(memory.recall("next", function, both[0])[1], both[0].flip(0))


def test_a_result_that_was_changed_is_computed_again(memory, function):
    one = index()
    memory.recall("key", function, one)[0].zero_()
    assert torch.equal(memory.recall("key", function, one)[1], one.flip(0))


def test_results_lie_in_memory_of_their_own(memory):
    one = index()
    values = one.clone()
    (part,) = memory.recall("key", lambda given: (given[2:],), one)
    one.zero_()
    assert torch.equal(part, values[2:])
    assert memory.recall("key", lambda given: (given[2:],), values)[0] is part


class Pair(NamedTuple):
    one: torch.Tensor
    inner: tuple[torch.Tensor, int]


def test_results_of_every_form(memory):
    one = index()

    def function(given):
        return Pair(given + 1, (given, 3))

    first = memory.recall("key", function, one)
    assert isinstance(first, Pair)
    assert first.inner[0].data_ptr() != one.data_ptr()
    assert memory.recall("key", function, one) is first
    first.inner[0].add_(1)
    assert memory.recall("key", function, one) is not first


def test_inference_mode_leaves_nothing_that_training_could_not_use(memory, function):
    with torch.inference_mode():
        one = index()
        both, _ = first = memory.recall("key", function, one)
        assert memory.recall("key", function, one) is first
        memory.recall("next", function, both[0])
    assert not both.is_inference()
    assert memory.recall("next", function, both[0]) is memory.recall("next", function, both[0])
    assert function.calls == 2


def test_the_same_memory_is_copied_once(memory, function):
    one = index(1000)
    memory.recall("key", function, one)
    memory.recall("next", function, one)
    assert len(memory._copies) == 1


# -- its bounds ------------------------------------------------------------------------------------------------------


def test_a_few_results_are_kept_and_the_one_not_used_for_longest_goes(function):
    memory = Memory(results=3)
    graphs = [index() for _ in range(4)]
    for one in graphs[:3]:
        memory.recall("key", function, one)
    memory.recall("key", function, graphs[3])
    assert (len(memory), function.calls) == (3, 4)
    for one in graphs[1:]:
        memory.recall("key", function, one)
    assert function.calls == 4
    memory.recall("key", function, graphs[0])
    assert function.calls == 5


def test_bytes_bound_all_but_the_latest(function):
    graphs = [index(1000) for _ in range(4)]  # 8,000 bytes and a copy, a result of 16,000 and its view of 8,000
    memory = Memory(size=33_000)
    for one in graphs:
        memory.recall("key", function, one)
    assert len(memory) == 2
    assert memory.nbytes == 64_000
    for one in graphs[:1:-1]:
        memory.recall("key", function, one)
    assert function.calls == 4
    none = Memory(size=0)
    for _ in range(2):
        none.recall("key", function, graphs[0])
    assert function.calls == 5, "the latest is kept however large it is"


@pytest.mark.parametrize("bounds", [{"results": 0}, {"size": -1}])
def test_bounds_that_are_none(bounds):
    with pytest.raises(ValueError, match="at least"):
        Memory(**bounds)


def test_clear(memory, function):
    one = index()
    result = weakref.ref(memory.recall("key", function, one)[0])
    memory.clear()
    gc.collect()
    assert result() is None
    assert (len(memory), memory.nbytes) == (0, 0)
    memory.recall("key", function, one)
    assert function.calls == 2


def test_what_was_given_is_not_held(memory, function):
    one = index()
    given = weakref.ref(one)
    memory.recall("key", function, one)
    del one
    assert given() is None


@pytest.mark.parametrize("twin", [copy.deepcopy, copy.copy, lambda memory: pickle.loads(pickle.dumps(memory))])
def test_copies_are_empty(function, twin):
    memory = Memory(results=2, size=77)
    memory.recall("key", function, index())
    one, other = twin([memory, memory]) if twin is not copy.copy else [copy.copy(memory)] * 2
    assert one is other is not memory
    assert (one.results, one.size, len(one)) == (2, 77, 0)
    assert len(memory) == 1


# -- threads ---------------------------------------------------------------------------------------------------------


def test_threads_share_it():
    memory, wrong = Memory(results=2, size=5_000), []
    graphs = [index(100) for _ in range(5)]

    def work(start):
        for step in range(200):
            one = graphs[(start + step * step) % 5]
            both, _ = memory.recall("key", Reversed(), one)
            _, view = memory.recall("next", Reversed(), both[0])
            if not torch.equal(both[1], one) or not torch.equal(view, one):
                wrong.append(one)
            if step == 100:
                memory.clear()

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(memory) <= 4
