"""The models that every door is tried on: the rows of the coverage study and the models of the documentation."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import doc_models

_STUDY = Path(__file__).parents[2] / "examples" / "coverage.py"


@dataclass(frozen=True)
class Kind:
    """A model as a user would have it.

    Attributes:
        build: Returns the float model, the same every time.
        inputs: Returns the arguments of a call on a small (``0``) or a larger (``1``) graph, a tuple or a dict.
        method: The method that is prepared.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    method: str = "forward"


def coverage_study() -> Any:
    """The module of ``examples/coverage.py``."""
    if "coverage_study" not in sys.modules:
        # Under another name than its own: numba looks for a package called coverage.
        spec = importlib.util.spec_from_file_location("coverage_study", _STUDY)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["coverage_study"] = importlib.util.module_from_spec(spec)  # dataclasses look there
        spec.loader.exec_module(sys.modules["coverage_study"])
    return sys.modules["coverage_study"]


def _covered() -> dict[str, Kind]:
    study = coverage_study()
    sizes = (study.SMALL, study.LARGE)
    return {
        f"{table}: {name}": Kind(case.model, lambda size, case=case: case.arguments(sizes[size]), case.method)
        for table, name, case in study.rows()
    }


def _documented() -> dict[str, Kind]:
    def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def model() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return build()

        return model

    sizes = (doc_models.SMALL, doc_models.LARGE)
    return {
        name: Kind(seeded(model.build), lambda size, model=model: model.inputs(sizes[size]), model.method)
        for name, model in doc_models.MODELS.items()
    }


KINDS: dict[str, Kind] = {**_covered(), **_documented()}
"""Every kind of model, by name."""
