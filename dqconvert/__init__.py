"""dqconvert: an ordinary float PyTorch Geometric model in, a trainable Degree-Quant model out.

The public names load on first use (PEP 562), so that ``import dqconvert`` and ``dqconvert --help`` stay fast.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from dqconvert.on_demand import register_on_demand

__version__ = "0.1.0"

_HOME = {
    "prepare": "prepare",
    "Prepared": "prepare",
    "calibrate": "calibrate",
    "sync_ranges": "distributed",
    "average_learned_steps": "prepared.ranks",
    "finetune": "finetune",
    "convert": "convert",
    "infer": "infer",
    "average_bits": "mixed.average",
    "bit_sensitivity": "mixed.search",
    "search_bits": "mixed.search",
    "compare": "compare",
    "export": "export",
    "Comparison": "compare",
    "evaluate": "evaluate",
    "Evaluation": "evaluation",
    "IntegerModule": "lower.module",
    "PreparedModule": "prepared.module",
    "Report": "report",
    "parameter_groups": "optimizers",
    "kurtosis_penalty": "kurtosis",
    "schedule": "schedule",
    "save": "checkpoint",
    "load": "checkpoint",
    "QConfig": "qconfig",
    "QSpec": "qconfig",
    "Protect": "qconfig",
    "Rule": "qconfig",
    "QuantizerSite": "qconfig",
    "presets": "qconfig",
    "DegreeProtection": "quant.protection",
    "enable_observer": "quant.switches",
    "disable_observer": "quant.switches",
    "enable_fake_quant": "quant.switches",
    "disable_fake_quant": "quant.switches",
    "DQConvertError": "errors",
    "ConfigError": "errors",
    "TraceError": "errors",
    "GuardError": "errors",
    "InputError": "errors",
    "ObserverError": "errors",
    "CheckpointError": "errors",
    "CommandError": "errors",
    "LoweringError": "errors",
    "ExportError": "errors",
    "DistributedError": "errors",
}

_MODULES = ("lightning", "plot")
"""Modules that are public as a whole."""

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'dqconvert' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``dqconvert.prepare`` the function: importing the file of the same name would bind the module there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
register_on_demand()
