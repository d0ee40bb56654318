"""The record of one operation: everything that the rest of dqconvert knows about it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

TORCH, PYG, OURS = "torch", "torch_geometric", "dqconvert"
"""The packages that operations are of."""


class Moves(enum.StrEnum):
    """How an operation puts entries of its first argument, a tensor or a list of them, elsewhere, each unchanged."""

    RESHAPE = "reshape"
    """Another shape, the entries in the same order: ``view``, ``flatten``, ``unsqueeze``."""
    PERMUTE = "permute"
    """The dimensions in another order: ``transpose``, ``movedim``."""
    EXPAND = "expand"
    """A dimension of size 1 becomes a larger one: ``expand``."""
    COPY = "copy"
    """Nothing moves: ``clone``, ``detach``."""
    PICK = "pick"
    """Slices along one dimension, by an index vector: ``index_select``."""
    ITEM = "item"
    """Whatever an index says: ``x[...]``."""
    SELECT = "select"
    """One slice along a dimension, which goes: ``select``."""
    CUT = "cut"
    """A contiguous range along one dimension: ``narrow``."""
    SPLIT = "split"
    """Several ranges, in a tuple: ``chunk``, ``unbind``."""
    REPEAT = "repeat"
    """Entries several times: ``repeat``, ``repeat_interleave``."""
    REORDER = "reorder"
    """Entries in another order along a dimension: ``flip``, ``roll``."""
    GATHER = "gather"
    """Single entries, each by an index of its own: ``gather``."""
    JOIN = "join"
    """Tensors behind one another along a dimension that they have: ``cat``."""
    STACK = "stack"
    """Tensors behind one another along a new dimension: ``stack``."""


class Sign(enum.StrEnum):
    """What is known of the sign of a result."""

    ANY = "any"
    """Nothing."""
    NONNEGATIVE = "nonnegative"
    """No entry is negative, whatever the arguments are."""
    KEEPS = "keeps"
    """No entry is negative where no entry of the tensors among the arguments is."""
    ARITHMETIC = "arithmetic"
    """Likewise, where no number among the arguments is negative, either."""


class Storage(enum.StrEnum):
    """Where a result lies."""

    UNKNOWN = "unknown"
    """Nothing is known: it is found out when the operation runs."""
    OWN = "own"
    """In memory of its own, always."""
    SHARED = "shared"
    """In the memory of an argument, always or sometimes."""


class InPlace(enum.StrEnum):
    """How ``x.f_(...)``, or ``f(x, inplace=True)``, is written as a call that returns the new value of ``x``."""

    NAMESAKE = "namesake"
    """As ``x.f(...)``: the same values and the same gradients."""
    CASTS = "casts"
    """As ``x.f(...)`` where that has the type of ``x``; else on a copy, for it rounds to that type."""
    ON_COPY = "on copy"
    """On a copy: ``x.f`` is missing, or returns something else."""
    VIEW = "view"
    """Not at all: ``x`` becomes a view of what it was (``x.t_()``)."""
    FROM_RESULT = "from result"
    """On a copy: its gradient is computed from the result, and differs from that of ``x.f(...)`` in the last bits."""


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: a function or method of a tensor, however it is spelled, and the modules that compute just that.

    Each default says that nothing is known, which every pass treats safely: an operation without a record stays in
    float, keeps no grid, and is not remembered.

    Attributes:
        name: The short name, as ``__name__`` without underscores at its ends: ``"relu"``, ``"index_select"``.
        package: Whose it is: ``"torch"``, ``"torch_geometric"``, or ``"dqconvert"``.
        aliases: Other names that torch has for it; the same operation, bit for bit. The tracer records the first name.
        variants: Names of other functions that passes need not tell from it (``mm`` and ``bmm`` from ``matmul``).
        modules: Layers that compute it and nothing else, as ``"torch.nn.ReLU"``. A subclass may do something else: who
            asks says whether it counts.
        parameters: The names of its parameters in order, for calls that pass them by position.

        as_method: Whether the tracer records a call of the function as one of the tensor's method.
        spreads: Whether the method takes several numbers one by one as well as in a tuple (``x.view(2, 3)``).
        by_position: Parameters that the tracer passes by position although they have a default.
        operator: The function of module ``operator`` that computes it: ``"add"``.
        methods: Methods of a tensor that the tracer records as that function.
        swapped: Likewise, with the operands swapped: ``"__rsub__"``.

        pointwise: Whether each entry of the result depends on the same entry of the tensors among the arguments, on
            numbers, and on nothing else. On codes it is a look-up table.
        moves: How it moves entries of its first argument; ``None``: it computes something.
        drops: Whether it is a dropout, and the identity in evaluation.
        identity: Whether it returns its first argument, in training and evaluation.
        row_by_row: For how many of its first arguments each row of the result is computed from the same row of these.
        keeps_columns: Whether its result has the columns of its first argument, or that, packed.
        reduces: How it adds up rows: ``"sum"``, ``"mean"``, ``"max"``, ``"min"``; ``""``: it does not.
        scatters: Whether it writes or adds rows, or entries, where an index says.
        pools: Whether it is a global pooling: its second argument says which graph each node is of.
        casts: Whether it changes the type of each entry, and nothing else.
        reads_size: Whether it reads a size of its argument, and no values.
        reads_number: Whether it reads a number off its argument.
        bookkeeping: Whether it checks, marks or reads sizes: views of a model leave it out.
        scalar: Whether graphs hold it for sizes and other Python numbers, too.
        checks: Whether it is called only for what it refuses.

        product: Whether it multiplies matrices or vectors: with a parameter it is a weighted op.
        weighted: The positions of the factors of such a product.
        columns_last: Whether the second factor has its output columns last (``x @ w``), not first (``linear``).
        sign: What is known of the sign of its result.
        cuts: Whether what is below zero counts as zero in its argument: ``f(x) == f(relu(x))``.
        lets_relu_pass: Whether ``relu(f(x)) == f(relu(x))``; of what moves entries or drops them this need not be said.
        activation: Whether it is a nonlinearity that may stand between an attention logit and its softmax.
        squashes: Whether its result is bounded, as coefficients are.

        storage: Where its result lies.
        in_place: How its in-place variant is written.
        writes: Whether it changes an argument, under this very name.

        remembered: Whether it returns the same for the same, and is worth remembering; what is pointwise, or moves
            entries, need not say so.
        of_graph: Whether, without edge weights, its result depends on the graph alone.

        integer: Whether only integer modules call it.
        finish: The position of its :class:`~dqconvert.kernels.integer.finish.Finish`, behind that of the number of
            columns; ``None``: it has none.
        packs: Whether it takes codes below 16 packed two to a byte, and makes them.
        refuses_nan: Whether it refuses NaN in its first argument, given the argument's ``name``.

        where: Of ours: the module that defines it.
        file: Of ours: its name in files, which stays when the function moves.
        multiply_adds: How many a call takes, given its arguments; ``None``: not counted here.
        onnx: The operator of ONNX that computes it of its tensors, in their order; ``""``: none, and it has a writer in
            ``dqconvert/onnx/writers`` or cannot be exported.
        known: Whether there is a record; ``False``: this is what is said of an operation without.
    """

    name: str
    package: str = TORCH
    aliases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    # How the tracer spells it.
    as_method: bool = False
    spreads: bool = False
    by_position: tuple[str, ...] = ()
    operator: str = ""
    methods: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()
    # What it does with entries and rows.
    pointwise: bool = False
    moves: Moves | None = None
    drops: bool = False
    identity: bool = False
    row_by_row: int = 0
    keeps_columns: bool = False
    reduces: str = ""
    scatters: bool = False
    pools: bool = False
    casts: bool = False
    reads_size: bool = False
    reads_number: bool = False
    bookkeeping: bool = False
    scalar: bool = False
    checks: bool = False
    # What its values are.
    product: bool = False
    weighted: tuple[int, ...] = ()
    columns_last: bool = False
    sign: Sign = Sign.ANY
    cuts: bool = False
    lets_relu_pass: bool = False
    activation: bool = False
    squashes: bool = False
    # Storage.
    storage: Storage = Storage.UNKNOWN
    in_place: InPlace = InPlace.NAMESAKE
    writes: bool = False
    # What may be remembered.
    remembered: bool = False
    of_graph: bool = False
    # On codes.
    integer: bool = False
    finish: int | None = None
    packs: bool = False
    refuses_nan: bool = False
    # Elsewhere.
    where: str = ""
    file: str = ""
    multiply_adds: Callable[..., int] | None = None
    onnx: str = ""
    known: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a call of it may have."""
        return self.name, *self.aliases, *self.variants

    @property
    def name_in_files(self) -> str:
        """Of one of ours: what files call it."""
        return self.file or f"{self.where}.{self.name}"

    @property
    def repeatable(self) -> bool:
        """True if equal calls may become one, and a result may be remembered: copies are made to be apart."""
        plain = (self.pointwise and not self.integer) or self.moves not in (None, Moves.COPY)
        return self.remembered or plain

    @property
    def joins(self) -> bool:
        """True if it puts tensors behind one another."""
        return self.moves in (Moves.JOIN, Moves.STACK)

    @property
    def keeps_grid(self) -> bool:
        """True if a value on a quantizer's grid stays on it: its entries move, or some of them become 0."""
        return (self.moves is not None and not self.joins) or (self.drops and self.sign is Sign.KEEPS)

    @property
    def commutes_with_relu(self) -> bool:
        """True if a ReLU behind it might as well stand before it."""
        keeps = self.moves is not None or self.drops or self.identity
        return self.lets_relu_pass or (keeps and self.sign is Sign.KEEPS)

    @property
    def reshapes(self) -> bool:
        """True if all entries stay, and only shapes and strides change."""
        return self.moves in (Moves.RESHAPE, Moves.PERMUTE, Moves.EXPAND, Moves.COPY)
