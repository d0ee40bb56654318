"""The numeric operations of Degree-Quant, on plain tensors: per operation one file with its definition.

Nothing here knows of modules or graphs. No function waits for an accelerator: what depends on the data stays
there.
"""

from dqconvert.kernels.degree import in_degree, protection_probability
from dqconvert.kernels.fake_quantize import fake_quantize, qparams
from dqconvert.kernels.minmax import minmax_pair
from dqconvert.kernels.percentile import percentile_pair

__all__ = [
    "fake_quantize",
    "in_degree",
    "minmax_pair",
    "percentile_pair",
    "protection_probability",
    "qparams",
]
