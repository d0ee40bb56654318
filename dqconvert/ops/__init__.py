"""One record per operation: all that the passes know of it, in one place.

A graph holds calls of torch's functions and methods, of torch's and PyG's layers, of PyG's functions and of our own.
Each has one record, an :class:`Op`, in one of the tables here; a pass asks for it and reads the field that it needs:

    op = op_of(node)
    if op.pointwise: ...

========================  ============================================================================================
``record.py``             :class:`Op`, the fields, and what each value of a field means
``pointwise.py``          arithmetic, nonlinearities, comparisons: one entry at a time
``moving.py``             views, picks, joins, copies, dropout: entries move and stay what they are
``products.py``           products with weights, reductions, scatters
``making.py``             what makes tensors, fills them, or reads their sizes
``graphs.py``             PyG's functions and aggregations
``ours.py``               marks and checks of traced graphs, operators of training and of integer modules
``table.py``              all of them, and finding a record by name, by function or by layer
``nodes.py``              the same for the node of a graph; its arguments by name; whether it writes in place
========================  ============================================================================================

**How to add an operation.** Write one line into the table that it belongs to. ``torch.nn.functional.softsign`` is

    _activation("softsign", "Softsign")

and with that alone the tracer, the placing of quantizers, the lowering to a look-up table, sharing and remembering know
it, called as a function, as a method, in place, or as the layer ``torch.nn.Softsign``. What a field does not say is
unknown, and unknown is safe: an operation without a record is traced and runs in float, its result may have any sign,
is on no quantizer's grid, may share memory, and is not remembered. So say no more than what is true for all arguments;
``tests/ops/test_table.py`` runs every operation of the table on random tensors and holds its record against what it
returns.

**What needs more than a record.** An operator of ours has its definition and its loops in ``kernels/``, and here its
record, with the module that defines it (``where``); ``checkpoint/operands.py`` says what a file may pass to it. A new
weighted op needs a form in ``lower/forms/``. A new fact about operations is a new field of :class:`Op`, with a default
that claims nothing, and a line that checks it in the test.

This room imports no other one. Records of PyG and of our own functions are found by package and name, so nothing is
imported for them either.
"""

from dqconvert.ops.nodes import OPERATORS, argument, op_name, op_of, qualified_name, storage_of, writes
from dqconvert.ops.record import OURS, PYG, TORCH, InPlace, Moves, Op, Sign, Storage
from dqconvert.ops.table import ALIASES, OPS, layers_of, op_named, op_of_function, op_of_layer, package_of

__all__ = [
    "ALIASES",
    "OPERATORS",
    "OPS",
    "OURS",
    "PYG",
    "TORCH",
    "InPlace",
    "Moves",
    "Op",
    "Sign",
    "Storage",
    "argument",
    "layers_of",
    "op_name",
    "op_named",
    "op_of",
    "op_of_function",
    "op_of_layer",
    "package_of",
    "qualified_name",
    "storage_of",
    "writes",
]
