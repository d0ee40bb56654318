"""A user's quantizer that says its grid: what evaluation rounds to, so that it becomes integers like ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dqconvert.errors import LoweringError
from dqconvert.qconfig import QSpec
from dqconvert.quant.fake_quantize import FakeQuantize


class OwnGrid(FakeQuantize):
    """Rounds as a user's quantizer does in evaluation, whose ``grid`` is ``(scale, zero_point, low, high)``.

    Args:
        module: The user's quantizer. Its ``grid`` is such a tuple, or a method that returns one: a step above 0, the
            code of 0, the lowest and the highest code, each one number or a tensor of one; at most 256 codes.
        name: Its path, for messages.

    Raises:
        LoweringError: If ``grid`` is no such tuple, or if the module rounds to other values.

    Example:
        >>> class Halves(nn.Module):
        ...     grid = (0.5, 0, -8, 7)
        ...     def forward(self, x, protected=None):
        ...         return (x / 0.5).round().clamp(-8, 7) * 0.5
        >>> OwnGrid(Halves(), "conv.quant.message")(torch.tensor([0.6, 9.0]))
        tensor([0.5000, 3.5000])
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        scale, zero_point, low, high = _numbers(module, name)
        super().__init__(QSpec(bits=max(2, (high - low).bit_length())), name=name, signed=low < 0)
        self.quant_min, self.quant_max = low, high
        self._own = torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)
        self._fused = None
        self.min_val.fill_((low - zero_point) * scale)
        self.max_val.fill_((high - zero_point) * scale)
        self.eval()
        self._check(module)

    def _qparams(self) -> tuple[Tensor, Tensor]:
        return self._own

    @torch.no_grad()
    def _check(self, module: nn.Module) -> None:
        """Raises unless the module rounds as its grid says, beyond its ends, too, and but for halves."""
        scale, zero_point = self._own
        steps = torch.arange(self.quant_min - 3, self.quant_max + 4) - zero_point
        values = torch.cat([(steps + part) * scale for part in (-0.3, 0.0, 0.3)]).unsqueeze(1)
        training = module.training
        found = module.eval()(values.clone(), None)
        module.train(training)
        expected = self(values)
        if not isinstance(found, Tensor) or not torch.allclose(found, expected, rtol=1e-5, atol=1e-4 * float(scale)):
            raise LoweringError(
                f"{self.name}: {type(module).__name__} says that its grid is scale {float(scale):.6g}, zero point "
                f"{int(zero_point)}, codes {self.quant_min} to {self.quant_max}, and rounds to other values in "
                f"evaluation: let grid say what it rounds to, or leave it out; then its values stay in float."
            )


def says_grid(module: object) -> bool:
    """True if a user's quantizer says its grid."""
    return (
        isinstance(module, nn.Module)
        and not isinstance(module, FakeQuantize)
        and getattr(module, "grid", None) is not None
    )


def _numbers(module: nn.Module, name: str) -> tuple[float, int, int, int]:
    grid: Any = module.grid
    given = grid() if callable(grid) else grid
    try:
        scale, zero_point, low, high = (float(part) for part in given)
        whole = [int(part) for part in (zero_point, low, high)]
        sound = whole == [zero_point, low, high] and 0 < scale < torch.inf and 0 < high - low <= 255
        sound = sound and low <= zero_point <= high
    except (TypeError, ValueError, OverflowError, RuntimeError):
        sound = False
    if not sound:
        raise LoweringError(
            f"{name}: grid of {type(module).__name__} must be (scale, zero_point, low, high), a step above 0 and whole "
            f"numbers, low <= zero_point <= high, at most 256 codes; got {given!r}."
        )
    return scale, whole[0], whole[1], whole[2]
