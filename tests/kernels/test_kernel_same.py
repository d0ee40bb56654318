"""`Seen`: whether a tensor is, value by value, the one that was seen, whatever happened to that one's memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels import same
from dqconvert.kernels.same import Seen, seen

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
    seen = Seen(tensor)
    assert seen.equals(tensor)
    assert seen.equals(tensor.clone())
    place = data.draw(st.integers(0, count - 1))
    tensor.numpy()[place] = 1 - min(int(tensor[place]), 1)  # behind torch's back
    assert not seen.equals(tensor)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [0, 1, same._MANY // 2, same._MANY // 2 + 1, 300_000])
def test_every_size(size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        index = torch.randint(1000, (2, size))
        seen = Seen(index)
        assert seen.equals(index.clone())
        for place in {0, size // 2, size - 1} if size else ():
            other = index.clone()
            other[1, place] += 1
            assert not seen.equals(other)
    finally:
        torch.set_num_threads(before)


def test_type_and_shape_count():
    index = torch.zeros(2, 6, dtype=torch.int64)
    seen = Seen(index)
    for other in (index.int(), index.float(), index.view(3, 4), index[:, :5], index.view(-1)):
        assert not seen.equals(other)


def test_values_that_differ_by_more_than_an_int32_holds():
    index = torch.tensor([[1, 2]])
    assert not Seen(index).equals(index + (1 << 32))
    assert Seen(index + (1 << 32)).equals(index + (1 << 32))


def test_strides_do_not_count():
    index = torch.randint(9, (40, 2))
    assert Seen(index.T).equals(index.T.contiguous())
    assert Seen(index.T.contiguous()).equals(index.T)


def test_it_is_made_and_asked_in_inference_mode():
    index = torch.randint(9, (2, 40))
    with torch.inference_mode():
        seen = Seen(index)
        assert seen.equals(index.clone())
    assert seen.equals(index)


def test_memory_that_is_seen_twice_is_copied_once():
    edge_index = torch.randint(100, (2, 1000))
    first = seen(edge_index[0])
    assert seen(edge_index[0]) is first
    assert seen(edge_index[1]) is not first
    assert seen(edge_index[0].clone()) is not first
    edge_index.numpy()[0, 5] += 1
    second = seen(edge_index[0])
    assert second is not first
    assert second.equals(edge_index[0])
    assert not first.equals(edge_index[0])
