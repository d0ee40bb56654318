"""What compiled loops take: nothing else reaches them, whoever calls; and tensors as arrays."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from dqconvert.errors import InputIndexError, InputShapeError, InputTypeError
from dqconvert.kernels import NO_CHAIN, Chain, Ranged, Sent, edge_order
from dqconvert.kernels._operator import Operator
from dqconvert.kernels._takes import Takes
from dqconvert.kernels.cpu.arrays import array, strided
from dqconvert.kernels.dropout import dropout_grad
from dqconvert.kernels.integer.folding.colors import have_colors_operator
from dqconvert.kernels.integer.folding.refine import refine_colors_operator
from dqconvert.kernels.integer.receivers import gcn_codes_operator
from dqconvert.kernels.order import check_order
from dqconvert.kernels.propagate import propagate_operator

SENDER, RECEIVER = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 1, 2])


def arguments(**changes):
    """Of a message passing over three nodes."""
    by_receiver, by_sender = edge_order(RECEIVER, SENDER, 3), edge_order(SENDER, RECEIVER, 3)
    given = {"x": torch.ones(3, 4), "weight": None, "sender": SENDER, "receiver": RECEIVER}
    given |= {"by_receiver": list(by_receiver), "by_sender": list(by_sender), "num_nodes": 3}
    given |= {"senders_protected": None, "range_": torch.tensor([0.0, 1.0]), "scheme_ints": [-8, 7, 0, 1, 0]}
    return {**given, "scheme_floats": [0.0, -1.0], "reduce": "sum", **NO_CHAIN._asdict(), **changes}


def propagated(**changes):
    given = list(arguments(**changes).values())
    return propagate_operator(Sent(*given[:8]), Ranged(*given[8:11]), given[11], Chain(*given[12:]))


def order(ptr, edges, others):
    return [torch.tensor(part, dtype=torch.int64) for part in (ptr, edges, others)]


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (InputShapeError, {"x": torch.ones(2, 4)}),
        (InputShapeError, {"x": torch.ones(4)}),
        (InputShapeError, {"weight": torch.ones(3, 1)}),
        (InputShapeError, {"weight": torch.ones(4, 3)}),
        (InputShapeError, {"weight": torch.ones(4, 0)}),
        (InputShapeError, {"num_nodes": 4}),
        (InputShapeError, {"num_nodes": -1}),
        (InputShapeError, {"senders_protected": torch.ones(2, dtype=torch.bool)}),
        (InputTypeError, {"senders_protected": torch.ones(3)}),
        (InputTypeError, {"protected": torch.ones(3, dtype=torch.uint8)}),
        (InputShapeError, {"by_receiver": order([0, 1, 4], [0, 1, 2, 3], [0, 0, 0, 0])}),
        (InputIndexError, {"by_receiver": order([0, 1, 5, 4], [0, 1, 2, 3], [0, 0, 0, 0])}),
        (InputIndexError, {"by_receiver": order([1, 1, 2, 4], [0, 1, 2, 3], [0, 0, 0, 0])}),
        (InputIndexError, {"by_receiver": order([0, 1, 3, 9], [0, 1, 2, 3], [0, 0, 0, 0])}),
        (InputIndexError, {"by_receiver": order([0, 1, 3, 4], [0, 1, 2, 4], [0, 0, 0, 0])}),
        (InputIndexError, {"by_receiver": order([0, 1, 3, 4], [0, 1, 2, 3], [0, 0, 3, 0])}),
        (InputIndexError, {"by_sender": order([0, 1, 3, 4], [0, 1, 2, 3], [0, 0, -1, 0])}),
        (InputTypeError, {"by_receiver": [part.int() for part in order([0, 1, 3, 4], [0, 1, 2, 3], [0] * 4)]}),
        (InputTypeError, {"by_receiver": order([0, 1, 3, 4], [0, 1, 2, 3], [0] * 4)[:2]}),
        (InputTypeError, {"ranges": torch.ones(2, dtype=torch.float64)}),
    ],
)
def test_what_loops_do_not_take(error, changes):
    with pytest.raises(error):
        propagated(**changes)
    with pytest.raises(error):
        propagate_operator.registered(*arguments(**changes).values())


def test_orders_are_looked_at_once_and_again_when_they_changed(monkeypatch):
    found = edge_order(RECEIVER, SENDER, 3)
    monkeypatch.setattr(torch.Tensor, "aminmax", None)
    check_order(found.ptr, found.others, 3)
    check_order(found.ptr, found.edges, 4)
    monkeypatch.undo()
    with pytest.raises(InputIndexError):
        check_order(found.ptr, found.others, 2)
    copy = torch.utils._pytree.tree_map(torch.clone, tuple(found))
    copy[2][0] = 7
    with pytest.raises(InputIndexError):
        check_order(copy[0], copy[2], 3)
    found.others[0] = 3
    with pytest.raises(InputIndexError):
        check_order(found.ptr, found.others, 3)
    with torch.inference_mode():
        check_order(found.ptr.clone(), torch.tensor([0, 1, 2, 0]), 3)


def test_other_operators():
    with pytest.raises(InputShapeError, match="kept has shape"):
        dropout_grad(torch.ones(3), torch.ones(2, dtype=torch.uint8), 0.5)
    ptr, senders = torch.tensor([0, 1, 2]), torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(InputIndexError):
        gcn_codes_operator(ptr, senders, torch.ones(2), torch.ones(4))
    colors = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(InputIndexError):
        refine_colors_operator(colors, colors, ptr, senders)
    assert not have_colors_operator(torch.ones(2, 1), torch.tensor([0, 9], dtype=torch.int32))


def test_every_operator_with_loops_says_what_they_take():
    def one(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    for takes in (None, Takes("one", y="real")):
        with pytest.raises(TypeError, match="must be said of each of its arguments"):
            Operator("test_takes_nothing", one, fake=one, cpu=one, takes=takes)


def test_tensors_on_two_devices():
    with pytest.raises(InputTypeError, match="one device, got meta, cpu"):
        dropout_grad(torch.ones(3, device="meta"), torch.ones(3, dtype=torch.uint8), 0.5)
    by_receiver = [part.to("meta") for part in order([0, 1, 3, 4], [0, 1, 2, 3], [0] * 4)]
    with pytest.raises(InputTypeError, match="meta"):
        propagated(by_receiver=by_receiver)


TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in TYPES])
def test_arrays(dtype):
    tensor = torch.arange(12).view(3, 4).to(dtype)
    found = array(tensor)
    assert found.dtype == tensor.numpy().dtype
    assert np.array_equal(found, tensor.tolist())
    found[0, 0] = 1
    assert tensor[0, 0] == 1
    assert array(tensor[:, :0]).shape == (3, 0)
    assert np.array_equal(array(tensor.t()), tensor.t().tolist())
    assert np.array_equal(strided(tensor[:, 1]), tensor[:, 1].tolist())
    assert array(tensor[0, 1]).shape == ()


def test_arrays_hold_their_memory_and_do_not_fix_it():
    weight = torch.nn.Parameter(torch.ones(1000))
    found = array(weight)
    assert weight.untyped_storage().resizable()
    alone = array(torch.full((1000,), 3.0))
    gc.collect()
    torch.zeros(1000)
    assert (alone == 3).all()
    assert found.flags.writeable
    negated = torch.imag(torch.ones(2, dtype=torch.complex64).conj() * 1j)
    assert np.array_equal(array(negated), negated.tolist())
    for other in (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match="no array lies in"):
            array(other)


def test_forms_that_are_known_let_nothing_else_through():
    takes = Takes(
        "some", x="float32 [rows, columns]", y="x? [=x]", parts="list number", many="size", ptr="int64 [nodes + 1]"
    )
    x, ptr = torch.ones(3, 2), torch.tensor([0, 1])
    known = x, x, [x, x], 2, ptr
    assert takes(known) == takes(known) == {"rows": 3, "columns": 2, "many": 2, "nodes": 1}
    wrong = [
        (x.double(), x, [x, x], 2, ptr),
        (None, x, [x, x], 2, ptr),
        (x, x.t(), [x, x], 2, ptr),
        (x, x, [x, x.int()], 2, ptr),
        (x, x, [x, None], 2, ptr),
        (x, x, [x, x], 2.0, ptr),
        (x, x, [x, x], torch.tensor(2), ptr),
        (x, x, [x, x], -1, ptr),
        (x, x, [x, x], 2, ptr[:0]),
        (x, x, [x, x], 2, ptr.int()),
        (x.to_sparse(), x, [x, x], 2, ptr),
        (x, x, [x, x.to("meta")], 2, ptr),
        (x, x, [x, x], 2, [ptr]),
    ]
    for args in wrong:
        for _ in range(2):
            with pytest.raises((InputTypeError, InputShapeError)):
                takes(args)
    assert takes(known) == takes((x, None, [], 2, ptr))
    for rows in range(600):  # batches of all sizes
        assert takes((x[:1].expand(rows, 2), None, [], 2, ptr))["rows"] == rows
    assert len(takes._known) <= 256
