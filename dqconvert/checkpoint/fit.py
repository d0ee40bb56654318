"""Checks that a checkpoint's tensors fit a model, and says where they do not."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dqconvert.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...] | None]
"""Names of tensors and their shapes; ``None`` where a lazy layer does not know its shape yet."""

_SHOWN = 10


def shapes_of(tensors: Mapping[str, object]) -> Shapes:
    """Returns the shapes of the tensors in a ``state_dict``."""
    return {
        name: None if is_lazy(value) else tuple(value.shape)
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }


def check_fit(model: nn.Module, expected: Shapes, found: Shapes, where: str) -> None:
    """Raises unless a file's tensors are the model's.

    Args:
        model: The model, for its name.
        where: The file, as the message calls it.

    Raises:
        CheckpointError: It lists the first ten differences with both shapes, and guesses the cause.

    Example:
        >>> check_fit(nn.Linear(3, 2), {"weight": (2, 3)}, {"weight": (2, 4)}, "model.pt")
        Traceback (most recent call last):
            ...
        dqconvert.errors.CheckpointError: model.pt: does not fit Linear: 'weight' is [2, 4] in the file and [2, 3] in
        the model. Probably the model was made with other arguments (widths, heads) than the one that was saved.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [name for name in expected if name in found and expected[name] not in (None, found[name])]
    faults = [
        f"{name!r} is {_text(found[name])} in the file and {_text(expected[name])} in the model" for name in reshaped
    ]
    faults += [f"{name!r} {_text(expected[name])} is missing in the file" for name in missing]
    faults += [f"{name!r} {_text(found[name])} is in the file only" for name in unexpected]
    if not faults:
        return
    rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    cause = _guess(expected, found, missing, unexpected)
    raise CheckpointError(
        f"{where}: does not fit {type(model).__name__}: {'; '.join(faults[:_SHOWN])}{rest}. Probably {cause}."
    )


def _text(shape: tuple[int, ...] | None) -> str:
    return "[?]" if shape is None else str(list(shape))


def _guess(expected: Shapes, found: Shapes, missing: list[str], unexpected: list[str]) -> str:
    if not missing and not unexpected:
        return "the model was made with other arguments (widths, heads) than the one that was saved"
    prefix = _prefix(list(expected), list(found))
    if prefix:
        return f"the names in the file differ by the prefix {prefix!r} of a model that contains this one"
    kinds = [{re.sub(r"\d+", "#", name) for name in names} for names in (expected, found)]
    if len(kinds[0] & kinds[1]) * 2 >= min(len(kinds[0]), len(kinds[1])) > 0:
        return "the model was made with other arguments (depth, bias, norm) than the one that was saved"
    return "the file holds a model of another class"


def _prefix(expected: list[str], found: list[str]) -> str:
    """Returns the prefix of most of the model's names in the file, or of the file's in the model."""
    for names, others in ((expected, found), (found, expected)):
        for other in others:
            at = [other[: -len(name)] for name in names if other.endswith(f".{name}")]
            if at and sum(at[0] + name in others for name in names) * 2 > len(names):
                return at[0]
    return ""
