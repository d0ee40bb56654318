"""Colors of nodes: compiled loops against the definitions, and what colors are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.kernels.cpu.integer import colors as loops
from dqconvert.kernels.integer.folding.colors import (
    have_colors,
    have_colors_operator,
    plain_have_colors,
    plain_row_colors,
    repeats,
    row_colors,
    row_colors_operator,
)
from dqconvert.kernels.integer.folding.refine import plain_refine_colors, refine_colors, refine_colors_operator
from dqconvert.kernels.integer.receivers import receiver_order

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int16, torch.bool, torch.complex128]


def few_rows(rows, columns, kinds=3, dtype=torch.float32):
    """Rows of a few kinds."""
    return torch.randint(0, 2, (kinds, columns)).to(dtype)[torch.randint(kinds, (rows,))]


def a_graph(nodes, edges, dtype=torch.int64):
    sender, receiver = torch.randint(nodes, (2, edges), dtype=dtype)
    return receiver_order(sender, receiver, nodes, nodes)[:2]


def stars(hubs, leaves):
    """Hubs in a ring, with leaves on each: most nodes are like many others."""
    ring = torch.arange(hubs)
    leaf = hubs + torch.arange(hubs * leaves)
    sender = torch.cat([ring, leaf, leaf % hubs])
    receiver = torch.cat([(ring + 1) % hubs, leaf % hubs, leaf])
    nodes = hubs * (leaves + 1)
    return receiver_order(sender, receiver, nodes, nodes)[:2]


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 5), (40, 2, 3), (1, 4)], ids=str)
def test_rows_of_any_shape_and_type(dtype, shape):
    x = few_rows(shape[0], int(np.prod(shape[1:])), dtype=dtype).view(shape)
    found = row_colors(x)
    assert torch.equal(found, plain_row_colors(x))
    assert found.dtype == torch.int32
    assert torch.equal(x[found.long()], x)
    apart = torch.stack([x, ~x if dtype == torch.bool else x + 1], dim=-1)[..., 0]
    assert not apart.is_contiguous() or shape == (1, 4)
    assert torch.equal(row_colors(apart), found)
    assert have_colors(apart, found)


def test_rows_are_compared_bit_by_bit():
    """Zeros of two signs are equal, but not divided by; NaN is not equal to itself."""
    x = torch.tensor([[0.0], [-0.0], [float("nan")], [float("nan")]])
    assert row_colors(x).tolist() == [0, 1, 2, 2]
    assert have_colors(x, torch.tensor([0, 1, 2, 2], dtype=torch.int32))
    assert not have_colors(x, torch.tensor([0, 0, 2, 2], dtype=torch.int32))


@settings(max_examples=60)
@given(
    nodes=st.integers(1, 12),
    edges=st.integers(0, 40),
    kinds=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    rounds=st.integers(0, 3),
)
def test_refining_any_graph(nodes, edges, kinds, seed, rounds):
    """Loops, several edges between two nodes and nodes without any included."""
    torch.manual_seed(seed)
    ptr, senders = a_graph(nodes, edges)
    colors = row_colors(few_rows(nodes, 2, kinds))
    for _ in range(rounds):
        colors = refine_colors(colors, colors, ptr, senders)
    found = refine_colors(colors, colors, ptr, senders)
    assert torch.equal(found, plain_refine_colors(colors, colors, ptr, senders))
    assert torch.equal(refine_colors(colors, colors, ptr, senders.long()), found)
    degrees = torch.zeros_like(colors)
    by_degree = refine_colors(colors, degrees, ptr, senders)
    assert torch.equal(by_degree, plain_refine_colors(colors, degrees, ptr, senders))
    assert torch.equal(ptr.diff()[by_degree.long()], ptr.diff())


def test_the_order_of_messages_does_not_matter():
    colors = torch.tensor([0, 1, 2, 3, 3], dtype=torch.int32)
    ptr, senders = torch.tensor([0, 0, 0, 0, 3, 6]), torch.tensor([0, 1, 2, 2, 1, 0], dtype=torch.int32)
    assert refine_colors(colors, colors, ptr, senders).tolist() == [0, 1, 2, 3, 3]
    senders[5] = 1
    assert refine_colors(colors, colors, ptr, senders).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [2, 9, 64, 65, 66, 67, 300])
def test_the_order_of_many_messages_does_not_matter(count):
    """They are put in order in two ways; ends that are alike are left out."""
    colors = torch.arange(count + 3, dtype=torch.int32).clamp(max=count)
    ptr = torch.tensor([0] * (count + 1) + [count, 2 * count, 3 * count])
    lists = torch.randperm(count), torch.randperm(count), torch.arange(count).flip(0)
    assert refine_colors(colors, colors, ptr, torch.cat(lists)).tolist() == [*range(count), *[count] * 3]
    lists[1][count // 2] = lists[1][0]
    wanted = [*range(count), count, count + 1, count]
    assert refine_colors(colors, colors, ptr, torch.cat(lists)).tolist() == wanted
    assert plain_refine_colors(colors, colors, ptr, torch.cat(lists)).tolist() == wanted


def test_many_on_one_thread_and_many(threads):
    ptr, senders = stars(300, 200)
    x = few_rows(ptr.numel() - 1, 3)
    colors = row_colors(x)
    assert torch.equal(colors, plain_row_colors(x))
    assert have_colors(x, colors)
    x[-1] = 9
    assert not have_colors(x, colors)
    assert torch.equal(refine_colors(colors, colors, ptr, senders), plain_refine_colors(colors, colors, ptr, senders))


def test_equal_hashes_are_not_enough(monkeypatch):
    """Whatever is put in the same place is compared value by value."""
    ptr, senders = stars(4, 5)
    x = few_rows(ptr.numel() - 1, 3)
    colors = row_colors(x)
    for name in ("hash_rows", "hash_messages"):
        monkeypatch.setattr(loops, name, lambda *args: args[-3].fill(7))
    assert torch.equal(row_colors(x), colors)
    assert torch.equal(refine_colors(colors, colors, ptr, senders), plain_refine_colors(colors, colors, ptr, senders))


def test_nothing():
    none = torch.empty(0, dtype=torch.int32)
    assert row_colors(torch.empty(0, 3)).tolist() == []
    assert have_colors(torch.empty(0, 3), none)
    assert refine_colors(none, none, torch.zeros(1, dtype=torch.int64), none).tolist() == []
    assert not repeats(torch.empty(0, 3))
    assert not repeats(torch.empty(3, 0))
    assert not repeats(torch.tensor(3.0))


@pytest.mark.parametrize("rows", [1, 2, 3, 63, 64, 65, 1000, 70_001])
def test_what_repeats(rows):
    different = torch.arange(2.0 * rows).view(rows, 2)
    assert not repeats(different)
    assert not repeats(torch.cat([different, different], dim=1)[:, ::2])
    assert repeats(torch.ones(rows, 2)) == (rows > 1)
    assert repeats(torch.ones(rows, 4)[:, ::2]) == (rows > 1)
    assert not repeats(torch.cat([torch.ones(rows, 4), different], dim=1))
    assert repeats(torch.ones(rows)) == (rows > 1)


def test_rows_of_which_half_are_of_one_kind_repeat():
    x = torch.arange(10_000.0)[:, None]
    x[torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:5_000]] = -1
    assert repeats(x)


def test_operators():
    ptr, senders = stars(3, 4)
    x = few_rows(ptr.numel() - 1, 3)
    colors = plain_row_colors(x)
    torch.library.opcheck(row_colors_operator.registered, (x,))
    torch.library.opcheck(have_colors_operator.registered, (x, colors))
    torch.library.opcheck(refine_colors_operator.registered, (colors, colors, ptr, senders))
    assert bool(plain_have_colors(x, colors))
