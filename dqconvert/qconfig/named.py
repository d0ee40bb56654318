"""The named configs: what each preset says, and the mapping that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from dqconvert.errors import ConfigError
from dqconvert.qconfig.specs import KINDS, Protect, QSpec, Range
from dqconvert.words import did_you_mean

Config = TypeVar("Config")

Fields = dict[str, Any]
"""Those of a `QConfig` that are not its defaults, by name."""

DEFAULT_PRESET = "int8-dq"


class UnknownPresetError(ConfigError, KeyError):
    """A `KeyError` too, as `in` and `get` of a mapping expect."""

    __str__ = Exception.__str__  # KeyError's would show the message's repr


class Presets(Mapping[str, Config]):
    """The named configs: an immutable mapping from name to `QConfig`.

    Those of papers are per tensor and, but for weights of learned steps, affine; weights, messages and aggregates are
    signed, activations `signed="input"`.

    - `int8-dq`, `int4-dq`: Degree-Quant as its authors' code does it (Tailor, Fernandez-Marques and Lane,
        ICLR 2021): percentile ranges kept as running minimum and maximum, clipped gradient, protection 0.0 to
        0.1.
    - `int8-dq-symmetric`: the same with signed grids whose zero point is 0, for runtimes that take no other (TensorRT).
    - `int8-qat`, `int4-qat`: plain quantization-aware training: moving averages of minimum and maximum
        (momentum 0.01), straight-through gradient, no protection.
    - `int8-nqat`, `int4-nqat`: the same with quantization noise (Fan et al., ICLR 2021): each step quantizes half of
        the values, their authors' example for scalar quantization.
    - `int8-lsq`, `int4-lsq`: learned steps (Esser et al., *LSQ*, ICLR 2020; Bhalgat et al., *LSQ+*, 2020), symmetric
        grids of weights and affine ones of everything else; protection 0.0 to 0.1.
    - `int8-dq+`, `int4-dq+`, `int3-dq+`, `int2-dq+`: what measured best, for `dqconvert.finetune`: ranges searched over
        non-zero values, in 3 and 2 bits as the beginning of learned steps; one per group of in-degrees, and per channel
        of weights, which are symmetric; unsigned grids wherever only ReLUs read on; quantizers before dropouts, GCN
        norms on the nodes; 8 bits for what stands behind a pooling; the model's results in float; clipped gradient; no
        protection.
    - `int8-ptq+`: `int8-dq+` for calibration without training, where dropouts do not matter.
    - `int8-ptq`: for calibration without training: weights, which are known exactly, by their minimum and
        maximum; everything else by percentiles, as a few hubs would stretch the range for all; no protection.

    Raises:
        ConfigError: For a name it does not have; it suggests the nearest.

    Example:
        >>> from dqconvert.qconfig import presets
        >>> list(presets)
        ['int8-dq', 'int4-dq', 'int8-qat', 'int4-qat', 'int8-nqat', 'int4-nqat', 'int8-lsq', 'int4-lsq', ...]
        >>> presets["int4-dq"].protect
        Protect(p_min=0.0, p_max=0.1, roles=None)
        >>> presets["int8-gat"]
        Traceback (most recent call last):
        ...
        dqconvert.qconfig.named.UnknownPresetError: unknown preset 'int8-gat'; did you mean 'int8-qat'? (there are:
        'int8-dq', 'int4-dq', ...)
    """

    def __init__(self, qconfigs: Mapping[str, Config]) -> None:
        self.qconfigs = dict(qconfigs)

    def __getitem__(self, name: str) -> Config:
        if isinstance(name, str) and name in self.qconfigs:
            return self.qconfigs[name]
        names = ", ".join(map(repr, self))
        raise UnknownPresetError(f"unknown preset {name!r}{did_you_mean(name, self)} (there are: {names})")

    def __iter__(self) -> Iterator[str]:
        return iter(self.qconfigs)

    def __len__(self) -> int:
        return len(self.qconfigs)

    def __repr__(self) -> str:
        return f"Presets({', '.join(self)})"


def _scheme(spec: QSpec, **more: Any) -> Fields:
    """Returns one scheme for every kind of value."""
    fields: Fields = dict.fromkeys(KINDS, replace(spec, signed=True))
    return {**fields, "activation": replace(spec, signed="input"), **more}


def _dq(bits: int) -> Fields:
    return _scheme(QSpec(bits=bits, range="percentile", grad="clip"), protect=Protect(p_min=0.0, p_max=0.1))


def _learned(bits: int) -> Fields:
    weight = QSpec(bits=bits, signed=True, symmetric=True, range="learned")
    return _scheme(QSpec(bits=bits, range="learned"), weight=weight, protect=Protect())


def _plus(bits: int) -> Fields:
    steps: Range = "mse" if bits >= 4 else "learned"
    value = QSpec(bits=bits, signed="graph", granularity="degree", range=steps, grad="clip")
    weight = QSpec(bits=bits, signed=True, symmetric=True, granularity="channel", range=steps, grad="clip")
    fields: Fields = dict.fromkeys(KINDS, value)
    more = {"placement": "before_dropout", "output": False, "norm": "nodes", "graph_bits": 8}
    return {**fields, "weight": weight, **more}


_SYMMETRIC: Fields = dict.fromkeys(KINDS, QSpec(bits=8, signed=True, symmetric=True, range="percentile", grad="clip"))

FIELDS: Mapping[str, Fields] = {
    "int8-dq": _dq(8),
    "int4-dq": _dq(4),
    "int8-qat": _scheme(QSpec(bits=8, range="ema")),
    "int4-qat": _scheme(QSpec(bits=4, range="ema")),
    "int8-nqat": _scheme(QSpec(bits=8, range="ema"), noise=0.5),
    "int4-nqat": _scheme(QSpec(bits=4, range="ema"), noise=0.5),
    "int8-lsq": _learned(8),
    "int4-lsq": _learned(4),
    **{f"int{bits}-dq+": _plus(bits) for bits in (8, 4, 3, 2)},
    "int8-ptq+": {**_plus(8), "placement": "paper"},
    "int8-ptq": _scheme(QSpec(bits=8, range="percentile"), weight=QSpec(bits=8, signed=True)),
    "int8-dq-symmetric": {**_dq(8), **_SYMMETRIC},
}
"""By the name of each preset, the fields of its `QConfig`."""
