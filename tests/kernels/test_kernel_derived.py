"""`Derived`: made once of the same, made again of anything else, and let go with what it was made of."""

from __future__ import annotations

import gc

import pytest
import torch

from dqconvert.kernels.derived import Derived, clear_derived


class Sum:
    """Counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, one, other, factor):
        self.calls += 1
        return factor * float(one.sum() + (0 if other is None else other.sum()))


@pytest.fixture
def kept():
    made = Sum()
    return Derived(made), made


def test_the_same_is_made_once(kept):
    total, made = kept
    one, other = torch.ones(3), torch.ones(2)
    assert [total((one, other), 2.0) for _ in range(3)] == [10.0] * 3
    assert made.calls == 1


def test_anything_else_is_made_again(kept):
    total, made = kept
    one, other = torch.ones(3), torch.ones(2)
    cases = [(one, other), (one, None), (one, torch.full((2,), 4.0)), (torch.zeros(3), other)]
    for factor in (1.0, 2.0):
        for tensors in cases:
            assert total(tensors, factor) == Sum()(*tensors, factor)
    assert made.calls == 2 * len(cases)


@pytest.mark.parametrize("which", [0, 1])
def test_what_was_changed_is_made_again(kept, which):
    total, _ = kept
    tensors = torch.ones(3), torch.ones(2)
    total(tensors, 1.0)
    tensors[which].mul_(3)
    assert total(tensors, 1.0) == Sum()(*tensors, 1.0)
    with torch.no_grad():
        tensors[which][0] = -8
    assert total(tensors, 1.0) == Sum()(*tensors, 1.0)


def test_nothing_is_kept_in_inference_mode(kept):
    total, made = kept
    with torch.inference_mode():
        one = torch.ones(3)
        assert total((one, None), 1.0) == 3
        one += 1
        assert total((one, None), 1.0) == 6
    assert made.calls == 2


def test_it_goes_with_the_tensor(kept):
    """Nor is it mistaken for that of another tensor, which may get its number."""
    total, made = kept
    for k in range(50):
        one = torch.full((3,), float(k))
        assert total((one, None), 1.0) == 3 * k
        del one
    gc.collect()
    assert made.calls == 50
    assert len(total) == 0


def test_all_tables_are_cleared_at_once(kept):
    total, made = kept
    one = torch.ones(3)
    total((one, None), 1.0)
    clear_derived()
    assert len(total) == 0
    assert total((one, None), 1.0) == 3
    assert made.calls == 2


def test_there_are_only_so_many():
    total = Derived(Sum(), most=3)
    tensors = [torch.full((3,), float(k)) for k in range(9)]
    assert [total((one, None), 1.0) for one in tensors] == [3.0 * k for k in range(9)]
    assert len(total) == 3


def test_it_is_found_where_it_was_kept():
    table, one, other = Derived[int](), torch.ones(3), torch.ones(3)
    assert table.find((one, other), 2) is None
    table.keep(7, (one, other), 2)
    assert table.find((one, other), 2) == 7
    for tensors, what in [((one, one), 2), ((one,), 2), ((one, None), 2), ((one, other), 3), ((other, one), 2)]:
        assert table.find(tensors, what) is None
