"""The models that every door is tried on: the rows of the coverage study and the models of the documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import coverage_table as study
import doc_models


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


def _covered() -> dict[str, Kind]:
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
