"""Integer operations whose rows have grids and tables of their groups: the loops do what the definitions say."""

from __future__ import annotations

import math

import pytest
import torch

from dqconvert.errors import InputShapeError, InputTypeError, InputValueError
from dqconvert.kernels.integer.finish import Finish
from dqconvert.kernels.integer.groups import (
    look_up_groups,
    look_up_pairs_groups,
    quantize_groups,
    quantize_groups_operator,
)
from dqconvert.kernels.integer.linear import integer_linear, integer_linear_operator, pack_weight
from dqconvert.kernels.integer.propagate import MessageWeight, integer_propagate_operator
from dqconvert.kernels.integer.receivers import receiver_order
from dqconvert.kernels.integer.tables import (
    look_up_operator,
    look_up_pairs_operator,
    plain_look_up,
    plain_look_up_pairs,
)

COUNT = 3


def codes(*shape, top=255):
    return torch.randint(top + 1, shape).to(torch.uint8)


def groups_of(rows):
    return torch.randint(COUNT, (rows,)).to(torch.uint8)


def grids(top=255):
    zero = torch.randint(top // 2, (COUNT, 1)).float()
    return torch.cat([torch.rand(COUNT, 1) + 0.2, zero, torch.full((COUNT, 1), float(top)), -zero.round()], 1)


def tables(*rest, dtype=torch.uint8):
    entries = torch.randint(200, (COUNT, *rest, 256))
    return entries.to(dtype)


def finishes(rows, columns):
    """Epilogues of groups: with and without a table, by column, of values, of pairs; shares; packed."""
    plain = Finish(factor=torch.rand(COUNT, 1) / 40, grid=grids(), groups=groups_of(rows))
    by_column = plain._replace(factor=torch.rand(COUNT, columns) / 40, bias=torch.randn(columns))
    ramps = (torch.arange(256.0) * torch.tensor([[0.3], [0.9], [0.5]])).round().to(torch.uint8)
    pairs = tables(256)
    return {
        "plain": plain,
        "by column": by_column,
        "table": by_column._replace(table=tables()),
        "ramps": plain._replace(table=ramps),
        "a ramp and others": plain._replace(table=torch.cat([ramps[:1], tables()[1:]])),
        "table by column": plain._replace(table=tables(columns)),
        "values": plain._replace(table=tables(dtype=torch.float32)),
        "values on a grid": plain._replace(table=(torch.arange(256.0) - 7) * torch.tensor([[0.5], [0.1], [2.0]])),
        "pairs": plain._replace(table=pairs, other=codes(rows, columns)),
        "planes": plain._replace(
            table=torch.tensor([[0.5, 0.3, 1.0, 0.0, 255.0], [0.2, 0.7, 3.0, 0.0, 255.0], [0.1, 0.1, 0.0, 2.0, 9.0]]),
            other=codes(rows, columns),
        ),
        "shares": by_column._replace(shares=torch.rand(rows)),
        "no grid": by_column._replace(grid=None),
        "packed": plain._replace(grid=grids(15), packed=True),
    }


@pytest.mark.study  # each kind compiles six loops
@pytest.mark.parametrize("rows", [0, 1, 130])
@pytest.mark.parametrize("kind", finishes(1, 1))
def test_linear_layers_end_as_the_group_of_each_row_says(kind, rows, threads):
    finish, weight = finishes(rows, 9)[kind], pack_weight(torch.randint(-90, 90, (9, 40)).to(torch.int16))
    for x in (codes(rows, 40), torch.randn(rows, 40), torch.randn(rows, 40) * (torch.rand(rows, 40) < 0.02)):
        for x_grid in (grids(), grids()[0]):
            args = (x, x_grid, weight, 9, False, finish, None)
            got, want = integer_linear_operator(*args), integer_linear_operator.definition(*args)
            torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", ["plain", "table", "shares", "no grid", "packed"])
def test_weighted_messages_are_on_grids_of_groups(kind, threads):
    """Of senders and receivers, or of one of both; without edges, with loops, and with edges that are there twice."""
    for edges, heads, columns in ((0, 1, 5), (300, 1, 9), (300, 4, 64)):
        sender, receiver = torch.randint(50, (2, edges))
        ptr, senders, _ = receiver_order(sender, receiver, 50, 60)
        finish = finishes(60, columns)[kind]
        for of_messages, of_x in ((COUNT, COUNT), (COUNT, 1), (1, COUNT)):
            own, numbers = groups_of(50) if of_x > 1 else None, grids(63)[:of_messages]
            weight = MessageWeight(codes(edges, heads), torch.randn(of_messages, of_x, 256) / 2, numbers, own)
            for reduce in ("sum", "mean"):
                args = (codes(50, columns), grids()[:of_x], ptr, senders, columns, False, reduce, weight, finish)
                got, want = integer_propagate_operator(*args), integer_propagate_operator.definition(*args)
                torch.testing.assert_close(got, want, rtol=0, atol=0)
    for wrong, reduce in ((weight._replace(groups=None), "sum"), (weight, "max")):
        with pytest.raises(InputShapeError, match="groups of receivers and senders"):
            integer_propagate_operator(*args[:6], reduce, wrong, finish)


@pytest.mark.sample(6)
@pytest.mark.parametrize("kind", finishes(1, 1))
def test_plain_sums_end_as_the_group_of_each_node_says(kind, threads):
    sender, receiver = torch.randint(50, (2, 300))
    ptr, senders, _ = receiver_order(sender, receiver, 50, 60)
    for reduce in ("sum", "mean", "max"):
        args = (codes(50, 9), grids()[0], ptr, senders, 9, False, reduce, None, finishes(60, 9)[kind])
        torch.testing.assert_close(
            integer_propagate_operator(*args), integer_propagate_operator.definition(*args), rtol=0, atol=0
        )


@pytest.mark.parametrize("shape", [(0, 4), (5,), (200, 7), (30, 2, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_look_ups(shape, dtype, threads):
    given, groups = codes(*shape), groups_of(shape[0])
    wide = math.prod(shape[1:]) if len(shape) > 1 else 0
    for table in [tables(dtype=dtype), *([tables(wide, dtype=dtype)] if wide else [])]:
        args = (given, table, groups)
        assert torch.equal(look_up_groups(*args), plain_look_up(*args[:2], groups=args[2]))
    args = (given, codes(*shape), tables(256, dtype=dtype), groups)
    assert torch.equal(look_up_pairs_groups(*args), plain_look_up_pairs(*args))


def test_tables_that_rise_evenly_are_climbed(threads):
    ramps = (torch.arange(256.0) * torch.tensor([[0.3], [0.9], [0.5]]) + 3).round().to(torch.uint8)
    for table in (ramps, torch.cat([ramps[:1], tables()[1:]])):
        args = (codes(70, 40), table, groups_of(70))
        assert torch.equal(look_up_groups(*args), plain_look_up(*args[:2], groups=args[2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 4), (5,), (200, 7), (30, 2, 4)], ids=str)
def test_values_become_codes_of_the_grid_of_their_row(shape, dtype, threads):
    args = ((torch.randn(shape) * 50).to(dtype), grids(), groups_of(shape[0]), None)
    assert torch.equal(quantize_groups_operator(*args), quantize_groups_operator.definition(*args))


def test_what_does_not_fit_is_refused():
    groups, table = groups_of(4), tables()
    with pytest.raises(InputShapeError):
        look_up_groups(codes(5, 2), table, groups)
    with pytest.raises(InputShapeError):
        look_up_groups(codes(4, 2), tables(3), groups)
    with pytest.raises(InputTypeError):
        look_up_groups(codes(4, 2), table, groups.long())
    with pytest.raises(InputShapeError):
        look_up_pairs_groups(codes(4, 2), codes(4, 2), table, groups)
    with pytest.raises(InputValueError, match="x holds NaN"):
        quantize_groups(torch.full((4, 2), torch.nan), grids(), groups, name="x")
    weight = pack_weight(torch.ones(2, 3, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"finish\.groups does not fit"):
        integer_linear(codes(5, 3), grids(), weight, 2, Finish(torch.rand(COUNT, 1), grids(), groups=groups))
    with pytest.raises(ValueError, match="does not say which have which"):
        integer_linear(codes(5, 3), grids(), weight, 2, Finish(torch.rand(1), grids()[0]))


def test_a_group_that_is_not_there_is_the_last_one():
    far = torch.full((4,), 200, dtype=torch.uint8)
    given, table = codes(4, 2), tables()
    assert torch.equal(look_up_groups(given, table, far), look_up_groups(given, table, torch.full_like(far, COUNT - 1)))


def test_operators_are_registered_right():
    groups = groups_of(5)
    torch.library.opcheck(look_up_operator.registered, (codes(5, 4), tables(), False, groups))
    torch.library.opcheck(look_up_pairs_operator.registered, (codes(5, 4), codes(5, 4), tables(256), groups))
    torch.library.opcheck(quantize_groups_operator.registered, (torch.randn(5, 4), grids(), groups, None))


@pytest.mark.parametrize("kind", ["plain", "no grid"])
def test_a_registered_operator_is_called_without_what_is_the_default(kind):
    """As exported programs do: torch leaves the name out, and groups are not taken for it."""
    weight, finish = pack_weight(torch.randint(-90, 90, (9, 6)).to(torch.int16)), finishes(5, 9)[kind]
    args = (codes(5, 6), grids(), weight, 9, False)
    want = integer_linear_operator.definition(*args, finish)
    assert torch.equal(integer_linear_operator.registered(*args, *finish), want)
    torch.library.opcheck(integer_linear_operator.registered, (*args, *finish))
