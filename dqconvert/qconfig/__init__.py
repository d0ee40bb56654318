"""The quantization of a model as plain data: `QSpec`, `Protect`, `Rule`, `QConfig`, and the presets made of them.

A config is plain data that knows nothing of torch. A `QConfig` says for each *kind* of value (weight,
activation, message, aggregate) which `QSpec` quantizes it; each kind is one or more *roles*, the places a
value can have in a layer. `as_qconfig` turns whatever a user may pass as `qconfig` into a `QConfig`.
"""

from dqconvert.qconfig.config import QConfig, as_qconfig, presets
from dqconvert.qconfig.ledger import RuleLedger
from dqconvert.qconfig.named import DEFAULT_PRESET, UnknownPresetError
from dqconvert.qconfig.rules import Factory, QuantizerSite, Rule, Spec, required_arguments
from dqconvert.qconfig.specs import KIND_OF_ROLE, KINDS, ROLES, Kind, Protect, QSpec, Role

__all__ = [
    "DEFAULT_PRESET",
    "KINDS",
    "KIND_OF_ROLE",
    "ROLES",
    "Factory",
    "Kind",
    "Protect",
    "QConfig",
    "QSpec",
    "QuantizerSite",
    "Role",
    "Rule",
    "RuleLedger",
    "Spec",
    "UnknownPresetError",
    "as_qconfig",
    "presets",
    "required_arguments",
]
