"""Deep copies of modules: what is one object in the original is one in the copy."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from torch import nn

from dqconvert.trace.copies import deepcopy


@pytest.mark.parametrize("kind", [dict, OrderedDict, list])
def test_empty_tables_that_are_one_stay_one(kind):
    model = nn.Module()
    model.one = model.other = kind()
    model.apart = kind()
    copied = deepcopy(model)
    assert copied.one is copied.other
    assert copied.one is not model.one
    assert copied.apart is not copied.one


def test_the_memo_knows_originals_alone():
    model = nn.Linear(2, 2)
    memo = {}
    copied = deepcopy(model, memo)
    assert memo[id(model._buffers)] is copied._buffers
    assert id(copied._buffers) not in memo
