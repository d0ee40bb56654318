"""Float checkpoints as users have them: reading them safely, and into a model."""

from dqconvert.weights.fill import check_finite, fill
from dqconvert.weights.read import Weights, read_weights

__all__ = ["Weights", "check_finite", "fill", "read_weights"]
