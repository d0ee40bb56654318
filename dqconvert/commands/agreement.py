"""How far a model that was calibrated and not trained is from the float model, for JSON and for people."""

from __future__ import annotations

import math
from typing import Any

from dqconvert.compare import Comparison

LOW_SHARE = 0.95
"""Share of equal predictions below which a warning is due: above it, a model loses a few points at most."""

LOW_RATIO = 15.0
"""Signal-to-noise ratio in dB below which a warning is due where there are no predictions: an error of a fifth."""


def agreement_of(found: Comparison) -> dict[str, Any]:
    """Returns a comparison with the model without rounding, in a few numbers for JSON.

    Returns:
        ``predictions``: how many there were, if the outputs look like scores (rows of two or more numbers), else 0;
        ``equal``: the share of them that are equal, ``None`` without any; ``sqnr_db``: of the outputs, ``None`` where
        it is not finite; ``worst``: the values that suffer most; ``low``: whether this is worth a warning.
    """
    plain = found.to_dict()
    equal = found.agreement if found.scores else None
    ratio = found.output.sqnr_db
    low = math.isnan(ratio) or (ratio < LOW_RATIO if equal is None else equal < LOW_SHARE)
    return {
        "predictions": found.predictions if found.scores else 0,
        "equal": equal,
        "sqnr_db": plain["output"]["sqnr_db"],
        "worst": {layer["path"]: layer["sqnr_db"] for layer in plain["layers"][:3]},
        "low": bool(low),
    }


def agreement_lines(found: dict[str, Any] | None) -> list[str]:
    """Returns what :func:`agreement_of` found as lines for people; none for ``None``."""
    if found is None:
        return []
    ratio = f"{found['sqnr_db']:.1f} dB signal to noise" if found["sqnr_db"] is not None else "no finite noise"
    line = f"against the float model, on the data: outputs with {ratio}"
    if found["equal"] is not None:
        line += f", {100 * found['equal']:.2f} % of {found['predictions']:,} predictions equal"
    if not found["low"]:
        return [line]
    worst = ", ".join(f"{path} ({db:.1f} dB)" for path, db in found["worst"].items() if db is not None)
    warning = (
        f"warning: that is low, and accuracy will suffer. Rounding hurts most at {worst}. Let dqconvert finetune train "
        f"it on this data, calibrate on more, or leave these values in float with --rule"
    )
    return [line, warning]
