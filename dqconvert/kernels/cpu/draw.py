"""The Bernoulli draws of torch's generator on the CPU, several times faster.

Where torch draws them one by one (on processors for which it has no library that does better), they come from a
Mersenne Twister: two of its numbers make 53 bits, which are compared with the probability. Here it is turned a block
of 624 numbers at a time, and every thread turns on to where its own part begins. Whether torch draws like that is
tried out once; where it does not, it draws itself.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqconvert.kernels._buffers import empty
from dqconvert.kernels.cpu.compiled import loop
from dqconvert.kernels.cpu.threads import run

MANY = 1 << 14
"""How many draws it takes to be worth the while."""

_BLOCK = 624
_LEFT, _NEXT, _STATE = 8, 16, 24  # bytes into torch.get_rng_state()


def bernoulli(count: int, p: float) -> NDArray[np.uint8]:
    """Returns the uint8 draws of `torch.empty(count).bernoulli_(p)`, and moves the generator on as that does."""
    if count < MANY or not _is_known():
        return torch.empty(count, dtype=torch.float32).bernoulli_(p).to(torch.uint8).numpy()
    state = torch.get_rng_state()
    drawn = _from_state(state, count, p)
    torch.set_rng_state(state)
    return drawn


@cache
def _is_known() -> bool:
    """True if torch draws as we do: the same values, and the same state behind them."""
    generator = torch.Generator().manual_seed(2021)
    for count, p in ((1, 0.5), (2000, 0.3), (30000, 0.5)):  # from an odd place, over the ends of blocks
        state = generator.get_state()
        theirs = torch.empty(count, dtype=torch.float32).bernoulli_(p, generator=generator)
        if len(state) < _STATE + 8 * _BLOCK or not np.array_equal(_from_state(state, count, p), theirs.numpy()):
            return False
        if not torch.equal(state, generator.get_state()):
            return False
        torch.empty(1, dtype=torch.int32).random_(generator=generator)
    return True


def _from_state(state: Tensor, count: int, p: float) -> NDArray[np.uint8]:
    """Draws from a generator's state, and advances it."""
    raw = state.numpy()
    words = raw[_STATE : _STATE + 8 * _BLOCK].view(np.uint64)
    left, following = raw[_LEFT : _LEFT + 4].view(np.int32), raw[_NEXT : _NEXT + 8].view(np.uint64)
    block = words.astype(np.uint32)
    drawn = empty((count,), torch.uint8).numpy()
    begin = _BLOCK if left[0] == 1 else int(following[0])
    limit = np.uint64(np.ceil(p * 2.0**53))  # p * 2^53 is exact, so this compares as floating point does

    def task(part: int, start: int, stop: int) -> tuple[int, NDArray[np.uint32]]:
        own, (turns, at) = block.copy(), divmod(begin + 2 * start, _BLOCK)
        turn_on(own, turns)
        return draw(own, at, limit, drawn[start:stop]), own

    at, block = run(task, _cuts(count))[-1]
    words[:] = block
    left[0], following[0] = _BLOCK + 1 - at, at
    return drawn


def _cuts(count: int) -> list[tuple[int, int]]:
    """Cuts draws by threads, smaller parts to the end: they begin later, as a turn costs a quarter of a draw."""
    threads = min(torch.get_num_threads(), 1 + count // (8 * MANY))
    ends = [1 - 0.75**part for part in range(threads + 1)]
    return list(itertools.pairwise(int(count * end / ends[-1]) for end in ends))


@loop
def turn_on(block, turns):  # type: ignore[no-untyped-def]
    """Moves a block on by so many blocks."""
    for _ in range(turns):
        turn(block)


@loop
def draw(block, at, limit, drawn):  # type: ignore[no-untyped-def]
    """Fills `drawn`, from number `at` of the block on; returns the number to go on with."""
    numbers = np.empty(_BLOCK, np.uint32)
    temper(block, numbers)
    done = 0
    while done < drawn.size:
        if at >= _BLOCK - 1:  # the two numbers do not lie in one block
            high = numbers[_BLOCK - 1] if at == _BLOCK - 1 else np.uint32(0)
            whole = at >= _BLOCK
            turn(block)
            temper(block, numbers)
            if whole:
                at = 0
            else:
                drawn[done] = np.uint8(bits(high, numbers[0]) < limit)
                done += 1
                at = 1
            continue
        pairs = min((_BLOCK - at) // 2, drawn.size - done)
        compare(numbers[at : at + 2 * pairs], limit, drawn[done : done + pairs])
        done += pairs
        at += 2 * pairs
    return at


@loop
def bits(high, low):  # type: ignore[no-untyped-def]
    return ((np.uint64(high) & np.uint64(0x1FFFFF)) << np.uint64(32)) | np.uint64(low)


@loop
def compare(numbers, limit, drawn):  # type: ignore[no-untyped-def]
    for i in range(drawn.size):
        drawn[i] = np.uint8(bits(numbers[2 * i], numbers[2 * i + 1]) < limit)


@loop
def twisted(one, two, far):  # type: ignore[no-untyped-def]
    y = (one & np.uint32(0x80000000)) | (two & np.uint32(0x7FFFFFFF))
    return far ^ (y >> np.uint32(1)) ^ (np.uint32(0x9908B0DF) & (np.uint32(0) - (y & np.uint32(1))))


@loop
def turn(block):  # type: ignore[no-untyped-def]
    """Turns the block: the next 624 numbers (Matsumoto and Nishimura, *Mersenne Twister*, 1998)."""
    for i in range(_BLOCK - 397):
        block[i] = twisted(block[i], block[i + 1], block[i + 397])
    for i in range(_BLOCK - 397, _BLOCK - 1):
        block[i] = twisted(block[i], block[i + 1], block[i + 397 - _BLOCK])
    block[_BLOCK - 1] = twisted(block[_BLOCK - 1], block[0], block[396])


@loop
def temper(block, numbers):  # type: ignore[no-untyped-def]
    for i in range(_BLOCK):
        y = block[i]
        y ^= y >> np.uint32(11)
        y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
        y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
        numbers[i] = y ^ (y >> np.uint32(18))
