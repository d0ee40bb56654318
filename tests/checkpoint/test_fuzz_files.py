"""Mutated files, half of them signed again: refused, or a module that computes; in a child, where a crash is seen."""

import pytest

import fuzz_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bases")
    fuzz_files.write_bases(made, ("GCN", "GAT", "GraphClassifier"))
    return made


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.study)])
def test_mutated_files_are_refused_or_compute(folder, spare, number):
    """About two thirds are refused; what is left computes, or what it calls says what is wrong."""
    outcomes, bad = fuzz_files.run(folder, number, start=lambda *args: spare.run_module("fuzz_files", *args))
    assert bad == []
    assert outcomes[fuzz_files.REFUSED] > number / 2
    assert outcomes[fuzz_files.WORKS] > number / 15
