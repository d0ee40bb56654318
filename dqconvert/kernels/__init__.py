"""The numeric operations of Degree-Quant, on plain tensors: per operation one file with its definition.

Nothing here knows of modules or graphs. No function waits for an accelerator: what depends on the data stays
there.
"""

from dqconvert.kernels._buffers import release_memory
from dqconvert.kernels._grid import Scheme
from dqconvert.kernels._layout import along
from dqconvert.kernels._steps import NO_CHAIN, Chain, Ranged
from dqconvert.kernels.batch_norm import quantize_batch_norm
from dqconvert.kernels.chain import quantize_chain
from dqconvert.kernels.degree import degree_groups, in_degree, nearest_seen, protection_probability
from dqconvert.kernels.dropout import dropout
from dqconvert.kernels.edge_order import EdgeOrder, edge_order
from dqconvert.kernels.fake_quantize import fake_quantize, qparams
from dqconvert.kernels.learned import learned_chain, learned_fake_quantize
from dqconvert.kernels.learned_linear import learned_linear
from dqconvert.kernels.learned_propagate import learned_propagate
from dqconvert.kernels.linear import linear, quantize_linear
from dqconvert.kernels.messages import Sent
from dqconvert.kernels.minmax import minmax_pair
from dqconvert.kernels.noise import mix
from dqconvert.kernels.observe_messages import observe_messages
from dqconvert.kernels.own_size import own_size
from dqconvert.kernels.parts import quantize_parts
from dqconvert.kernels.percentile import percentile_pair
from dqconvert.kernels.propagate import propagate
from dqconvert.kernels.scale_rows import scale_rows

__all__ = [
    "NO_CHAIN",
    "Chain",
    "EdgeOrder",
    "Ranged",
    "Scheme",
    "Sent",
    "along",
    "degree_groups",
    "dropout",
    "edge_order",
    "fake_quantize",
    "in_degree",
    "learned_chain",
    "learned_fake_quantize",
    "learned_linear",
    "learned_propagate",
    "linear",
    "minmax_pair",
    "mix",
    "nearest_seen",
    "observe_messages",
    "own_size",
    "percentile_pair",
    "propagate",
    "protection_probability",
    "qparams",
    "quantize_batch_norm",
    "quantize_chain",
    "quantize_linear",
    "quantize_parts",
    "release_memory",
    "scale_rows",
]
