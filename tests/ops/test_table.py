"""The table of operations: every record is sound, and holds for what its operation returns on random tensors."""

from __future__ import annotations

import importlib
import inspect
import operator

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import nn
from torch.fx import Graph

import dqconvert
from dqconvert.ops import (
    ALIASES,
    OPS,
    OURS,
    PYG,
    TORCH,
    InPlace,
    Moves,
    Op,
    Sign,
    Storage,
    layers_of,
    op_named,
    op_of,
    op_of_function,
    op_of_layer,
    storage_of,
    writes,
)
from dqconvert.trace.leaves import leaf_functions

torch.manual_seed(0)
X, Y = torch.randn(6, 4), torch.randn(6, 4)
ROWS = torch.tensor([4, 0, 3])
RECORDS = {f"{op.package}.{op.name}": op for op in OPS}
OF_TORCH = {op.name: op for op in OPS if op.package == TORCH}

BINARY = (
    *("add", "sub", "rsub", "mul", "div", "floordiv", "floor_divide", "mod", "remainder", "fmod", "maximum", "minimum"),
    *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "atan2", "xlogy"),
    *("fmax", "fmin", "hypot", "copysign", "heaviside", "logaddexp", "logaddexp2"),
)
BITS = {**dict.fromkeys(("and", "or", "xor", "lshift", "rshift"), (3,)), "invert": ()}
FURTHER = {
    **dict.fromkeys(BINARY, (Y,)),
    **BITS,
    "addcmul": (Y, Y),
    "addcdiv": (Y, Y),
    "lerp": (Y, 0.25),
    "where": (Y > 0, Y),
    "masked_fill": (Y > 0, 0.5),
    "clamp": (-0.5, 0.5),
    "clamp_min": (-0.5,),
    "clamp_max": (0.5,),
    "pow": (2,),
    "prelu": (torch.tensor([0.25]),),
    "threshold": (0.1, 0.2),
    "matmul": (Y.t(),),
    "linear": (Y,),
    "addmm": (Y, torch.eye(4)),
    "softmax": (1,),
    "index_select": (0, ROWS),
    "gather": (1, torch.randint(4, (6, 2))),
    "view": (3, 8),
    "reshape": (3, 8),
    "unflatten": (1, (2, 2)),
    "squeeze": (0,),
    "unsqueeze": (0,),
    "view_as": (torch.empty(8, 3),),
    "reshape_as": (torch.empty(8, 3),),
    "transpose": (0, 1),
    "permute": (1, 0),
    "movedim": (0, 1),
    "expand": (2, 6, 4),
    "expand_as": (torch.empty(2, 6, 4),),
    "chunk": (2,),
    "split": (3,),
    "narrow": (0, 1, 3),
    "select": (0, 2),
    "getitem": (slice(1, 3),),
    "repeat": (2, 1),
    "repeat_interleave": (2,),
    "flip": (0,),
    "roll": (1,),
    "scatter": (0, torch.zeros(2, 4, dtype=torch.long), Y),
    "as_strided": ((3,), (2,)),
    "to": (torch.float32,),
    "type": (torch.float32,),
    "type_as": (Y,),
    "tensor_split": (2,),
    "split_with_sizes": ((2, 4),),
    "hsplit": (2,),
    "vsplit": (2,),
    "dsplit": (1,),
    "unsafe_chunk": (2,),
    "unsafe_split": (3,),
    "unsafe_split_with_sizes": ((2, 4),),
    "broadcast_to": ((2, 6, 4),),
    **dict.fromkeys(("dropout", "alpha_dropout", "feature_alpha_dropout"), (0.5, False)),
}
"""What a call takes besides a tensor, or a list of two: of those that take anything."""

SOMETIMES_VIEWS = {
    "einsum": lambda x: torch.einsum("ij->ji", x),
    "meshgrid": lambda x: torch.meshgrid(x[0])[0],
    "cartesian_prod": lambda x: torch.cartesian_prod(x[0]),
    "resize_as": lambda x: x.resize_as(x),
    "slice_inverse": lambda x: x[1:].slice_inverse(x, 0, 1),
    "linalg_diagonal": torch.linalg.diagonal,
    "dequantize": lambda x: x.dequantize(),
    "dropout1d": lambda x: F.dropout1d(x, 0.0),
    "dropout2d": lambda x: F.dropout2d(x[None], 0.0),
    "dropout3d": lambda x: F.dropout3d(x[None, None], 0.0),
}
"""Calls that share memory, of those that often do not."""

NOT_CALLED = ("cuda", "indices", "values", "identity", "alias", "imag", *SOMETIMES_VIEWS)
"""Also where there is no such device, or no such tensor here: sparse, or complex."""

OF_OTHERS = (
    *("convolution", "recurrent", "multi_head_attention", "hetero_linear"),
    *("getattr", "item", "set_grad_enabled", "identity", "segment_matmul", "grouped_matmul"),
)
"""Names of Python's builtins, of pyg-lib, and of what only layers compute."""


def function_of(name):
    """One of torch's functions or methods, or an operator, or a builtin."""
    if name == "where":  # whose function takes the condition first
        return torch.Tensor.where
    places = (torch, F, torch.Tensor, torch._C._nn, torch._C._special, torch.linalg, operator)
    found = [getattr(place, name) for place in places if hasattr(place, name)]
    called = [value for value in found if callable(value) and not isinstance(value, type)]  # torch.float is a type
    return called[0] if called else getattr(operator, f"{name}_", None) or getattr(torch.Tensor, f"{name}_", None)


def call(op, x):
    """An operation of torch's on a tensor, or on a list of it and another one."""
    if op.name == "unfold":  # not the function of images
        return x.unfold(0, 2, 1)
    function = getattr(torch.Tensor, op.name, None) if op.moves and not op.joins else None
    if op.operator and op.moves:
        function = getattr(operator, op.operator)
    return (function or function_of(op.name))(_given(op, x), *FURTHER.get(op.name, ()))


def _given(op, x):
    return x if isinstance(x, list) or not op.joins else [x, Y]


def numbers(op):
    """What a pointwise operation takes: numbers that are not negative, integers where it works on bits."""
    return (X.abs() * 10).int() if op.name in BITS else X.abs()


def same(left, right):
    return torch.equal(torch.nan_to_num(left, nan=7.0), torch.nan_to_num(right, nan=7.0))


def results(op, x):
    found = call(op, x)
    return list(found) if isinstance(found, tuple | list) else [found]


def those(holds):
    return [pytest.param(op, id=name) for name, op in RECORDS.items() if holds(op)]


def of_torch(holds):
    return those(lambda op: op.package == TORCH and op.name not in NOT_CALLED and holds(op))


# -- what a record may say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=RECORDS)
def test_a_record_contradicts_itself_nowhere(op):
    assert not (op.pointwise and (op.moves or op.product or op.reduces or op.drops))
    assert op.pointwise or not op.activation
    assert op.pointwise or op.name == "softmax" or not op.squashes
    assert op.product or not (op.weighted or op.columns_last)
    assert op.sign is Sign.KEEPS or not (op.moves or op.reduces or op.identity or op.lets_relu_pass)
    assert op.sign is Sign.NONNEGATIVE or not op.cuts
    assert op.reads_number or not op.reads_size
    assert op.bookkeeping or not op.reads_number
    assert op.operator or not (op.methods or op.swapped)
    assert op.moves or op.name == "tile" or not (op.spreads or op.as_method)
    assert (op.package == OURS) or not (op.where or op.file or op.writes or op.checks or op.integer)
    assert op.integer or not (op.packs or op.refuses_nan or op.finish)
    assert op.integer or op.row_by_row in (0, op.name == "embedding")
    assert op.package == PYG or not (op.pools or op.reduces)
    assert op.package in (PYG, OURS) or not op.of_graph
    assert op.repeatable or not op.of_graph
    assert op.known
    assert not Op("anything", known=False).repeatable


def test_a_users_layer_is_no_operation_that_it_is_called_like():
    assert op_of_layer(type("relu", (nn.Module,), {})()).known is False


def test_what_says_nothing_is_safe():
    """An operation without a record is on no grid, of any sign, not remembered, and may share memory."""
    op = op_named("surely_not_there")
    claims = {name: value for name, value in vars(op).items() if value not in (False, None, (), "", 0)}
    nothing = {"name": "surely_not_there", "package": TORCH, "sign": Sign.ANY, "storage": Storage.UNKNOWN}
    assert claims == {**nothing, "in_place": InPlace.NAMESAKE}
    assert not any((op.keeps_grid, op.reshapes, op.joins, op.repeatable))


# -- what a record is of -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", those(lambda op: op.package == TORCH))
def test_every_name_is_one_of_torch(op):
    assert function_of(op.name) is not None or hasattr(torch.ops.aten, op.name) or op.name in OF_OTHERS
    for layer in op.modules:
        module, _, name = layer.rpartition(".")
        assert op_of_layer(object.__new__(getattr(importlib.import_module(module), name))) is op


@pytest.mark.parametrize("op", those(lambda op: op.package == PYG))
def test_every_name_of_pyg_stays_whole_in_graphs(op):
    kept = {function.__name__: function for function in leaf_functions()}
    assert op.modules or op_of_function(kept[op.name]) is op


@pytest.mark.parametrize("op", those(lambda op: op.where))
def test_every_name_of_ours_is_that_of_a_function(op):
    function = getattr(importlib.import_module(op.where), op.name)
    assert function.__module__ == op.where
    assert op_of_function(function) is op


@pytest.mark.parametrize("room", ["runtime", "guards"])
def test_every_function_of_traced_graphs_has_a_record(room):
    module = importlib.import_module(f"dqconvert.trace.{room}")
    defined = {name for name, value in inspect.getmembers(module, inspect.isfunction)}
    mine = {name for name in defined if getattr(module, name).__module__ == module.__name__}
    assert mine == {op.name for op in OPS if op.where == module.__name__}


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_same_operation(alias):
    op = op_named(ALIASES[alias])
    assert op_named(alias) is op
    if op.pointwise and alias != op.name:
        special = getattr(torch.special, alias.removeprefix("special_"), None)
        function = getattr(torch, alias, None) or special
        assert same(function(X.abs(), *FURTHER.get(op.name, ())), call(op, X.abs()))


@pytest.mark.parametrize("name", ["and", "or", "xor", "lshift", "rshift", "invert"])
def test_functions_on_bits_are_the_operators(name):
    written = {"lshift": "left_shift", "rshift": "right_shift", "invert": "not"}.get(name, name)
    op, x = op_named(f"bitwise_{written}"), torch.tensor([5, 6])
    assert op is op_named(name)
    assert torch.equal(getattr(torch, f"bitwise_{written}")(x, *FURTHER[name]), function_of(name)(x, *FURTHER[name]))


# -- what an operation returns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", of_torch(lambda op: op.pointwise))
def test_pointwise_operations_take_one_entry_at_a_time(op):
    order = torch.randperm(X.numel())
    found = call(op, numbers(op)).flatten()[order]
    others = [v.flatten()[order] if getattr(v, "shape", None) == X.shape else v for v in FURTHER.get(op.name, ())]
    assert same(function_of(op.name)(numbers(op).flatten()[order], *others), found)


@pytest.mark.parametrize("op", of_torch(lambda op: op.pointwise and op.modules))
def test_layers_compute_what_their_operation_computes(op):
    (name,) = op.modules
    layer = getattr(nn, name.rpartition(".")[2])
    assert torch.equal(layer(*(FURTHER["threshold"] if op.name == "threshold" else ()))(X), call(op, X))


@pytest.mark.parametrize("op", of_torch(lambda op: op.sign is not Sign.ANY and (op.pointwise or op.moves)))
def test_signs(op):
    if op.sign is Sign.NONNEGATIVE:
        assert all(bool((result >= 0).all()) for result in results(op, X * 3))
    further = [value.abs() if value is Y else value for value in FURTHER.get(op.name, ())]
    if op.pointwise:
        assert bool((function_of(op.name)(X.abs(), *further) >= 0).all())


@pytest.mark.parametrize("name", ["softmax", "norm", "sum", "mean", "amax", "amin"])
def test_signs_of_what_adds_up(name):
    x = X if op_named(name).sign is Sign.NONNEGATIVE else X.abs()
    assert bool((getattr(torch, name)(x, dim=1) >= 0).all())


@pytest.mark.parametrize("op", of_torch(lambda op: op.cuts or op.commutes_with_relu))
def test_relus_before_and_behind(op):
    before = call(op, [X.relu(), Y.relu()]) if op.joins else call(op, X.relu())
    before, found = (list(r) if isinstance(r, tuple | list) else [r] for r in (before, results(op, X)))
    for one, other in zip(before, found, strict=True):
        assert torch.equal(one, other if op.cuts else other.relu())


@pytest.mark.parametrize("name", ["max", "min"])
def test_relus_pass_through_aggregations_that_select(name):
    groups = torch.tensor([0, 0, 2, 2, 2, 3])  # group 1 is empty
    layer = getattr(torch_geometric.nn, f"{name.capitalize()}Aggregation")()
    assert op_of_layer(layer).commutes_with_relu
    assert torch.equal(layer(X.relu(), groups, dim_size=4), layer(X, groups, dim_size=4).relu())


@pytest.mark.parametrize("op", of_torch(lambda op: op.squashes))
def test_coefficients_are_bounded(op):
    assert float(call(op, X * 100).detach().abs().max()) <= 1


@pytest.mark.parametrize("op", of_torch(lambda op: op.moves))
def test_moves_return_entries_of_their_argument(op):
    entries = set(torch.cat([X, Y] if op.joins else [X]).flatten().tolist())
    for result in results(op, X):
        assert set(result.flatten().tolist()) <= entries
        if op.moves in (Moves.RESHAPE, Moves.COPY):
            assert torch.equal(result.flatten(), X.flatten())
        if op.moves is Moves.PERMUTE:
            assert sorted(result.flatten().tolist()) == sorted(X.flatten().tolist())


@pytest.mark.parametrize("op", of_torch(lambda op: op.storage is not Storage.UNKNOWN))
def test_memory(op):
    x = X.reshape(2, 3, 4) if op.name == "dsplit" else numbers(op) if op.pointwise else X.clone()
    places = {
        value.untyped_storage().data_ptr()
        for value in (x, Y, *FURTHER.get(op.name, ()))
        if value is not None and isinstance(value, torch.Tensor)
    }
    shared = [result.untyped_storage().data_ptr() in places for result in results(op, x)]
    if op.storage is Storage.OWN:
        assert not any(shared)
    elif not op.casts or op.name == "float":  # others share where nothing is to be converted
        assert any(shared)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOMETIMES_VIEWS)
def test_what_sometimes_returns_a_view_is_known_to(name):
    x = X.clone()
    assert SOMETIMES_VIEWS[name](x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert op_named(name).storage is Storage.SHARED


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        ((F.relu, (True,), {}), True),
        ((F.relu, (1,), {}), True),
        ((F.relu, (), {"inplace": 1}), True),
        ((F.dropout, (0.5, True), {}), False),
        ((F.dropout, (0.5, True, True), {}), True),
        ((F.leaky_relu, (1,), {}), False),
        ((F.leaky_relu, (1, False), {"inplace": False}), False),
        ((torch.add, (1,), {"out": X}), True),
        ((operator.iadd, (1,), {}), True),
        ((torch.relu_, (), {}), True),
        ((torch.relu, (), {}), False),
    ],
)
def test_writing_is_told_however_it_is_asked_for(call, changes):
    graph = Graph()
    function, args, kwargs = call
    node = graph.call_function(function, (graph.placeholder("x"), *args), kwargs)
    assert writes(node) is changes
    assert (storage_of(node) is Storage.SHARED) is (changes or function is F.dropout)


@pytest.mark.parametrize("value", [1, 1.0, 0.0])
def test_arithmetic_that_changes_nothing_has_memory_of_its_own(value):
    for name in ("add", "sub", "mul", "div", "pow", "maximum", "clamp"):
        other = torch.full_like(X, value) if name == "maximum" else value
        assert function_of(name)(X, other).data_ptr() != X.data_ptr()


@pytest.mark.parametrize("op", those(lambda op: op.in_place is not InPlace.NAMESAKE))
def test_in_place_variants_exist(op):
    assert hasattr(torch.Tensor, f"{op.name}_") or hasattr(F, f"{op.name}_")


@pytest.mark.parametrize("op", of_torch(lambda op: op.pointwise and op.in_place is InPlace.NAMESAKE))
def test_in_place_variants_return_what_their_namesakes_return(op):
    further = FURTHER.get(op.name, ())
    method = getattr(torch.Tensor, f"{op.name}_", None)
    if method is not None:
        assert same(method(numbers(op), *further), call(op, numbers(op)))


def test_weighted_layers():
    torchs = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
    pygs = (torch_geometric.nn.Linear, torch_geometric.nn.HeteroLinear, torch_geometric.nn.HeteroDictLinear)
    assert set(layers_of(lambda op: op.product)) == {*torchs, *pygs, nn.modules.conv._ConvNd}


def test_an_embedding_takes_row_by_row():
    assert op_named("embedding").row_by_row == 1
    assert torch.equal(F.embedding(ROWS, X)[[2, 0]], F.embedding(ROWS[[2, 0]], X))


# -- all passes know what one of them knows ------------------------------------------------------------------------

TRUTHS = ("isnan", "isinf", "isfinite")
OTHERS = (
    *BINARY,
    *BITS,
    "addcmul",
    "addcdiv",
    "lerp",
    "where",
    "masked_fill",
    "prelu",
    "logical_not",
    "float",
    "pos",
    *TRUTHS,
)
UNARY = [op for op in OF_TORCH.values() if op.pointwise and op.name not in OTHERS]
DOMAINS = {**dict.fromkeys(("acos", "asin", "atanh", "erfinv", "logit"), (0.5, 0.0)), "acosh": (1.0, 1.0)}
"""Factor and summand for those that have no value for some numbers between 0.5 and 1.5."""


class EveryFunction(nn.Module):
    """A sum of linear layers, each behind another function of what a first one returns."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 2) for _ in UNARY)

    def forward(self, x, edge_index):
        h = self.first(x).sigmoid() + 0.5  # some have values for positive numbers alone
        total = 0
        for op, layer in zip(UNARY, self.layers, strict=True):
            factor, summand = DOMAINS.get(op.name, (1.0, 0.0))
            total = total + layer(function_of(op.name)(h * factor + summand, *FURTHER.get(op.name, ())))
        return total


def test_whatever_is_pointwise_becomes_a_table():
    """One record is all that a pointwise operation needs to run on integers."""
    given = torch.rand(50, 4) + 0.5, torch.randint(50, (2, 100))
    torch.manual_seed(0)
    module, _ = dqconvert.prepare(EveryFunction(), "int8-ptq", given)
    seen = {op_of(node).name for node in module.graph.nodes if node.op.startswith("call_f") or node.op == "call_method"}
    assert {op.name for op in UNARY} <= seen
    dqconvert.calibrate(module, given)
    integer = dqconvert.convert(module)
    left = {op_of(node).name for node in integer.graph.nodes if node.op in ("call_function", "call_method")}
    assert left.isdisjoint({op.name for op in UNARY})
    difference = (integer(*given) - module.eval()(*given)).abs()
    assert float(difference.max()) < 0.01
    assert float((difference > 1e-4).float().mean()) < 0.03
