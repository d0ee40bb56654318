"""The numeric operations of the integer module, on codes: per operation one file with its definition.

A code is a uint8 that counts steps from the lower end of its grid: `value = (code - zero) * scale`, `0 <= code <=
top`, whether the quantizer was signed or not. Codes of up to four bits may lie packed, two to a byte.
"""

from dqconvert.kernels.integer.attention import attention_codes, softmax_codes
from dqconvert.kernels.integer.codes import check_numbers, quantize
from dqconvert.kernels.integer.edge_products import edge_products
from dqconvert.kernels.integer.fold import fold_nodes, place_rows, take_rows
from dqconvert.kernels.integer.heads import add_heads
from dqconvert.kernels.integer.linear import integer_linear
from dqconvert.kernels.integer.propagate import integer_propagate
from dqconvert.kernels.integer.receivers import gcn_codes, gcn_order, receiver_order
from dqconvert.kernels.integer.sums import quantize_sum
from dqconvert.kernels.integer.tables import look_up, look_up_pairs

INTEGER_FUNCTIONS = (
    *(add_heads, attention_codes, check_numbers, edge_products, gcn_codes, gcn_order, integer_linear),
    *(integer_propagate, look_up, look_up_pairs, quantize, quantize_sum, receiver_order, softmax_codes),
    *(fold_nodes, place_rows, take_rows),
)
"""What integer graphs call of these."""

__all__ = ["INTEGER_FUNCTIONS"]
