"""The knapsack: against every choice there is, within its capacity, and where fronts are cut."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqconvert.mixed import knapsack as room
from dqconvert.mixed.knapsack import knapsack

ITEMS = st.integers(1, 4).flatmap(
    lambda options: st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=options, max_size=options),
        min_size=1,
        max_size=5,
    )
)


def total(table, choice):
    return sum(row[option] for row, option in zip(table, choice, strict=True))


@settings(max_examples=60)
@given(items=ITEMS, spare=st.integers(0, 20))
def test_the_least_loss_within_the_capacity(items, spare):
    costs, losses = ([[option[k] for option in item] for item in items] for k in (0, 1))
    capacity = sum(map(min, costs)) + spare
    found = knapsack(costs, losses, capacity)
    assert total(costs, found) <= capacity
    every = itertools.product(*(range(len(item)) for item in items))
    within = [choice for choice in every if total(costs, choice) <= capacity]
    least = min(total(losses, choice) for choice in within)
    assert total(losses, found) == least
    assert total(costs, found) == min(total(costs, choice) for choice in within if total(losses, choice) == least)


def test_nothing_to_choose():
    assert knapsack([], [], 0) == []


def test_a_capacity_that_is_too_small():
    with pytest.raises(ValueError, match="cheapest options cost 5"):
        knapsack([[2, 4], [3, 4]], [[0.0, 0.0]] * 2, 4)


def test_a_front_that_is_cut_keeps_the_capacity_and_is_near(monkeypatch):
    sizes = [7 * number % 101 + 3 for number in range(14)]
    costs = [[bits * size for bits in (2, 3, 4, 8)] for size in sizes]
    losses = [[(13 * number % 17 + 1) / 4**bits for bits in (2, 3, 4, 8)] for number in range(14)]
    capacity = 4 * sum(sizes)
    exact = knapsack(costs, losses, capacity)
    monkeypatch.setattr(room, "STATES", 64)
    cut = knapsack(costs, losses, capacity)
    assert cut != exact
    assert total(costs, cut) <= capacity
    assert total(losses, exact) < total(losses, cut) < 1.1 * total(losses, exact)
