"""The multiple-choice knapsack: one option of each item, within a capacity, at the least loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STATES = 1 << 16
"""How many partial choices are kept at most."""


def knapsack(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], capacity: int) -> list[int]:
    """Returns the option of each item, such that costs sum to at most a capacity and losses to the least there is.

    By dynamic programming over partial choices that no other beats in both cost and loss (their Pareto front): exact
    while there are at most ``STATES`` of them; of more, the best of each of so many equal steps of cost goes on, so the
    capacity is kept and the loss may be above the least. Of equal losses the cheaper choice is taken.

    Args:
        costs: From 0 on; by item, then option.
        losses: Finite; likewise.
        capacity: At least the sum of each item's cheapest option.

    Raises:
        ValueError: If it is less.

    Source:
        Kellerer, Pferschy, Pisinger, *Knapsack Problems*, 2004, section 11.5.

    Example:
        >>> knapsack([[2, 4, 8], [2, 4, 8]], [[2.0, 1.0, 0.5], [9.0, 2.0, 0.1]], capacity=10)
        [0, 2]
        >>> knapsack([[2, 4, 8], [2, 4, 8]], [[2.0, 1.0, 0.5], [9.0, 2.0, 0.1]], capacity=8)
        [1, 1]
    """
    cheapest = [min(options) for options in costs]
    rest = sum(cheapest)
    if rest > capacity:
        raise ValueError(f"capacity={capacity}: the cheapest options cost {rest}")
    cost, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # of each state: the one it came from, and the option
    for least, item_costs, item_losses in zip(cheapest, costs, losses, strict=True):
        rest -= least
        costs_now = (cost[:, None] + np.asarray(item_costs, dtype=np.int64)).ravel()
        losses_now = (loss[:, None] + np.asarray(item_losses, dtype=np.float64)).ravel()
        order = np.lexsort((losses_now, costs_now))
        order = order[costs_now[order] + rest <= capacity]
        best = np.minimum.accumulate(losses_now[order])
        order = order[np.concatenate([[True], best[1:] < best[:-1]])]
        order = _thinned(order, costs_now[order])
        cost, loss = costs_now[order], losses_now[order]
        steps.append((order // len(item_costs), order % len(item_costs)))
    state, chosen = len(cost) - 1, []  # losses fall along a front: the last is the least
    for before, option in reversed(steps):
        chosen.append(int(option[state]))
        state = int(before[state])
    return chosen[::-1]


def _thinned(order: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Returns the cheapest state of a front, and the last of each step of cost; all, where they are few enough."""
    if len(order) <= STATES:
        return order
    step = (cost - cost[0]) * (STATES - 1) // max(int(cost[-1] - cost[0]), 1)
    last = np.concatenate([step[1:] != step[:-1], [True]])
    last[0] = True
    return order[last]
