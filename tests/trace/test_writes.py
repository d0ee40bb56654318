"""Which calls change one of their arguments in place."""

from __future__ import annotations

import operator

import pytest
import torch
from torch.fx import Graph
from torch.nn import functional

from dqconvert.ops import writes

CHANGE = [
    ("method", "add_", {}),
    ("method", "__iadd__", {}),
    ("method", "__setitem__", {}),
    ("function", operator.iadd, {}),
    ("function", operator.setitem, {}),
    ("function", torch.relu_, {}),
    ("function", functional.relu, {"inplace": True}),
    ("function", functional.relu, True),
    ("function", torch.add, {"out": 1}),
]
LEAVE = [
    ("method", "add", {}),
    ("method", "__invert__", {}),
    ("method", "__eq__", {}),
    ("function", operator.add, {}),
    ("function", torch.relu, {}),
    ("function", functional.relu, {"inplace": False}),
    ("function", getattr, {}),
]


def call(kind, target, rest):
    graph = Graph()
    x = graph.placeholder("x")
    args, kwargs = ((x, rest), {}) if rest is True else ((x, x), rest)
    return (graph.call_method if kind == "method" else graph.call_function)(target, args, kwargs)


@pytest.mark.parametrize(("kind", "target", "rest"), CHANGE, ids=range(len(CHANGE)))
def test_these_change_something(kind, target, rest):
    assert writes(call(kind, target, rest))


@pytest.mark.parametrize(("kind", "target", "rest"), LEAVE, ids=range(len(LEAVE)))
def test_these_do_not(kind, target, rest):
    assert not writes(call(kind, target, rest))


def test_what_is_no_call_changes_nothing():
    graph = Graph()
    assert not writes(graph.placeholder("x_"))
    assert not writes(graph.call_module("layer_"))
