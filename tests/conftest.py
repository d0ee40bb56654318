"""Fixtures shared by the tests."""

import copy
import functools

import pytest
import torch

import dqconvert
import zoo


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@functools.cache
def _prepared_once(name, qconfig):
    case = zoo.CASES[name]
    return dqconvert.prepare(case.model(), qconfig, case.inputs())


@pytest.fixture
def prepared():
    """``prepared(name, qconfig)``: a model of the zoo, prepared once per test run and copied for each test."""

    def get(name, qconfig="int8-dq"):
        module, report = _prepared_once(name, qconfig)
        return copy.deepcopy(module), report

    return get
