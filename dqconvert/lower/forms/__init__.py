"""Forms: how one node of the prepared graph becomes integer.

A form is a function ``(lowering, node) -> Value | None``: it writes what the node becomes and returns what is known of
its value, or returns None and leaves the node to the next form. A new form is a function here or in a file of its own,
and a line in :data:`FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Node

from dqconvert.lower.forms.attention import lower_softmax
from dqconvert.lower.forms.embedding import lower_embedding
from dqconvert.lower.forms.floats import keep, keep_differentiated
from dqconvert.lower.forms.groups import lower_groups
from dqconvert.lower.forms.heads import lower_edge_products, lower_mean, lower_products
from dqconvert.lower.forms.linear import lower_linear
from dqconvert.lower.forms.messages import lower_messages
from dqconvert.lower.forms.moving import lower_identity, lower_join, lower_move
from dqconvert.lower.forms.norms import lower_node_norm, lower_scaled_rows
from dqconvert.lower.forms.rounding import lower_rounding
from dqconvert.lower.forms.sources import lower_argument, lower_attribute, lower_constant, lower_metadata
from dqconvert.lower.forms.tables import lower_pointwise
from dqconvert.lower.lowering import Lowering
from dqconvert.lower.values import Value

Form = Callable[[Lowering, Node], Value | None]

FORMS: tuple[Form, ...] = (
    keep_differentiated,  # the forward takes a gradient through it
    lower_argument,  # an argument of forward
    lower_attribute,  # a parameter, a buffer, a flag, a module
    lower_metadata,  # a tensor's shape, dtype or device
    lower_constant,  # a function of parameters alone
    lower_softmax,  # the rounding of a softmax over the edges of each node
    lower_mean,  # the rounding of a mean over heads, with a bias or without
    lower_rounding,  # any other rounding
    lower_node_norm,  # the norm of the nodes of a GCN
    lower_scaled_rows,  # rows that their epilogue has scaled by it
    lower_identity,  # what changes nothing in evaluation: dropout, clone, detach
    lower_move,  # what moves entries: view, index_select, transpose
    lower_join,  # a concatenation
    lower_linear,  # a product with a weight
    lower_products,  # a product with a vector for each head
    lower_edge_products,  # a product of the rows at both ends of each edge
    lower_messages,  # gather, weight, round and aggregate
    lower_groups,  # a sum, mean or maximum over groups of rows
    lower_embedding,  # rows of a weight
    lower_pointwise,  # a function of single entries, as a look-up table
    keep,  # everything else: in float
)
"""Every form, in order: the first that applies is taken."""
