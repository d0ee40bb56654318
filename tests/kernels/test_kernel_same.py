"""`Copy` and `Own`: tensors that others are compared with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels import same
from dqconvert.kernels.same import Copy, Own

WIDE = 1 << 40


@settings(max_examples=100)
@given(
    st.integers(1, 20_000) | st.integers(same._MANY, same._MANY + 9000),
    st.sampled_from([torch.int64, torch.int32, torch.bool, torch.float32, torch.uint8]),
    st.booleans(),
    st.data(),
)
def test_one_different_value_is_seen(count, dtype, wide, data):
    tensor = torch.randint(2, (count,)).to(dtype)
    if wide and dtype == torch.int64:
        tensor = tensor * WIDE
    copy = Copy(tensor)
    assert copy.equals(tensor)
    assert copy.equals(tensor.clone())
    place = data.draw(st.integers(0, count - 1))
    tensor.numpy()[place] = 1 - min(int(tensor[place]), 1)  # behind torch's back
    assert not copy.equals(tensor)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [0, 1, same._MANY // 2, same._MANY // 2 + 1, 300_000])
def test_every_size(size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        index = torch.randint(1000, (2, size))
        copy = Copy(index)
        assert copy.equals(index.clone())
        for place in {0, size // 2, size - 1} if size else ():
            other = index.clone()
            other[1, place] += 1
            assert not copy.equals(other)
    finally:
        torch.set_num_threads(before)


def test_type_and_shape_count():
    index = torch.zeros(2, 6, dtype=torch.int64)
    copy = Copy(index)
    for other in (index.int(), index.float(), index.view(3, 4), index[:, :5], index.view(-1)):
        assert not copy.equals(other)


def test_values_that_differ_by_more_than_an_int32_holds():
    index = torch.tensor([[1, 2]])
    assert not Copy(index).equals(index + (1 << 32))
    assert Copy(index + (1 << 32)).equals(index + (1 << 32))


def test_strides_do_not_count():
    index = torch.randint(9, (40, 2))
    assert Copy(index.T).equals(index.T.contiguous())
    assert Copy(index.T.contiguous()).equals(index.T)


def test_it_is_made_and_asked_in_inference_mode():
    index = torch.randint(9, (2, 40))
    with torch.inference_mode():
        copy = Copy(index)
        assert copy.equals(index.clone())
    assert copy.equals(index)


def test_what_nobody_writes_into_is_known_by_where_it_lies():
    order = torch.randint(9, (3, 40))
    own = Own(order[1])
    assert own.equals(order[1])
    assert own.equals(order[1].clone())
    assert not own.equals(order[0])
    assert not own.equals(order[1, ::2])
    assert not own.equals(order[1].int())
    order[0, 0] += 1  # of a part that it does not show: torch counts for all
    assert not own.equals(order[1])


def test_where_it_lies_no_other_tensor_comes_to_lie():
    order = torch.randint(9, (40,))
    own, values = Own(order), order.clone()
    del order
    for _ in range(20):
        assert not own.equals(torch.full((40,), 11))
    assert own.equals(values)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_views_in_every_mode_are_known(mode):
    order = torch.randint(9, (3, 40))
    with mode():
        own = Own(order[1])
        assert own.equals(order[1])
    assert own.equals(order[1])
    order.add_(1)
    assert not own.equals(order[1])
