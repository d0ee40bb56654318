"""What the tests of everything that ends in a chain share: schemes, masks, steps and what makes them hard."""

from __future__ import annotations

import itertools
import math

import torch

from dqconvert.kernels import Scheme
from dqconvert.kernels._steps import Chain, Steps

NEVER = (math.inf, -math.inf)
PLACES = [places for n in (1, 2, 3) for places in itertools.combinations(range(3), n)]


def scheme(bits=8, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=True, signed=True):
    low = -(2 ** (bits - 1)) if signed else 0
    return Scheme(low, low + 2**bits - 1, symmetric, p, momentum, observe, clip)


INT8 = scheme(p=0.001)
INT4 = scheme(bits=4, p=0.01)
FINE = Scheme(-(2**40), 2**40, False, 0.0, -1.0, False, False)
"""So fine that it is its own straight-through estimate to within gradcheck's tolerance."""

SCHEMES = {
    "int8": INT8,
    "int4": INT4,
    "min and max": scheme(bits=4),
    "unsigned": scheme(bits=4, signed=False),
    "symmetric": scheme(symmetric=True),
    "unsigned symmetric": scheme(bits=4, symmetric=True, signed=False, p=0.01),
    "ema": scheme(momentum=0.01, clip=False),
    "percentile ema": scheme(p=0.01, momentum=0.1),
    "frozen": scheme(observe=False),
}

ADDED = ["nothing", "bias", "other", "scaled"]


def addends(kind, rows, columns, dtype=torch.float32):
    """What a chain adds, as its keyword arguments."""
    return {
        "nothing": {},
        "bias": {"bias": torch.randn(columns).to(dtype)},
        "other": {"other": torch.randn(rows, columns).to(dtype)},
        "scaled": {"other": torch.randn(rows, columns).to(dtype), "alpha": torch.tensor([1.3]).to(dtype)},
    }[kind]


def by_place(schemes):
    """All three places, of the schemes at some of them."""
    return tuple(schemes.get(place) for place in range(3))


def chain_of(schemes, ranges, relu=False, masked=True, bias=None, other=None, alpha=None, protected=None, groups=None):
    """A chain with schemes at some places, as operators take it."""
    packed = Steps(by_place(schemes), relu, masked).packed()
    return Chain(bias, other, alpha, protected, groups, torch.as_tensor(ranges), *packed)


def as_ranges(ranges):
    """Ends of ranges, as functions take them."""
    return [torch.tensor(end) for end in ranges]


def growing(shape, count=3, dtype=torch.float32):
    return [(torch.randn(shape) * (1 + step / 2)).to(dtype) for step in range(count)]


def masks(rows):
    return {
        "none": None,
        "random": torch.rand(rows) < 0.3,
        "all": torch.ones(rows) > 0,
        "no row": torch.zeros(rows) > 0,
    }


KINDS = ["zeros", "constant", "all zero", "denormal", "huge", "nan", "infinite", "nan and infinite", "all nan"]


def special(kind, shape):
    x = torch.randn(shape)
    if kind == "zeros":
        return x.relu() * (torch.rand(shape) < 0.1)
    if kind == "constant":
        return torch.full(shape, 0.7)
    if kind == "all zero":
        return torch.zeros(shape)
    if kind == "denormal":
        return x * 1e-42
    if kind == "huge":
        return x * 1e37
    at = torch.rand(shape)
    if kind in ("nan", "nan and infinite"):
        x[at < 0.01] = math.nan
    if kind in ("infinite", "nan and infinite"):
        x[(at > 0.5) & (at < 0.51)] = math.inf
        x[at > 0.99] = -math.inf
    return torch.full(shape, math.nan) if kind == "all nan" else x


def assert_equal(got, want):
    """Values, ranges and which gradients pass, to the last bit."""
    for name, one, two in zip(("values", "ranges", "passes"), got, want, strict=True):
        assert one.dtype == two.dtype, name
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True, msg=lambda text, n=name: f"{n}: {text}")
