"""What tables say of codes: compiled loops against the definitions."""

from __future__ import annotations

import pytest
import torch

from dqconvert.kernels.integer.finish import unpack
from dqconvert.kernels.integer.ramp import ramp_of
from dqconvert.kernels.integer.tables import look_up, look_up_pairs, plain_look_up, plain_look_up_pairs

OPS = torch.ops.dqconvert


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_tables_by_code(dtype, threads):
    codes, other = torch.randint(256, (2, 900, 70), dtype=torch.uint8)
    for shape in ((256,), (70, 256)):
        table = torch.randint(256, shape).to(dtype)
        for given_codes in (codes, codes[:3], codes[:0], codes[3], codes[:, :1].expand(-1, 70), codes.T.contiguous().T):
            found = look_up(given_codes, table)
            assert found.dtype == dtype
            assert torch.equal(found, plain_look_up(given_codes, table))
            if dtype == torch.uint8 and given_codes.dim() == 2:
                found = look_up(given_codes, table & 15, packed=True)
                assert torch.equal(unpack(found, given_codes.size(1)), plain_look_up(given_codes, table & 15))
    pairs = torch.randint(256, (256, 256)).to(dtype)
    for a, b in ((codes, other), (codes[0], other[0]), (codes[:0], other[:0]), (codes.T, other.T)):
        assert torch.equal(look_up_pairs(a, b, pairs), plain_look_up_pairs(a, b, pairs))


@pytest.mark.sample(5)
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 40, 64, 77, 200])
@pytest.mark.parametrize("by_column", [False, True], ids=["one table", "by column"])
def test_tables_that_are_lines(columns, by_column, threads):
    """What a scale and a ReLU make of codes is computed, where rows are wide."""
    slopes = torch.rand(columns if by_column else 1, 1) * 3 - 1
    table = (torch.arange(256) * slopes + 20).round().clamp(3, 250).to(torch.uint8)
    table = table if by_column else table[0]
    assert ramp_of(table, 256, columns) is not None
    for rows in (0, 1, 1500):
        given = torch.randint(256, (rows, columns), dtype=torch.uint8)
        assert torch.equal(look_up(given, table), plain_look_up(given, table))
        assert torch.equal(look_up(given, table & 15, packed=True), plain_look_up(given, table & 15, True))
        few = (table // 16).contiguous()
        assert ramp_of(few, 256, columns) is not None
        assert torch.equal(look_up(given, few, packed=True), plain_look_up(given, few, True))


def test_a_table_for_one_column():
    codes, table = torch.arange(256, dtype=torch.uint8)[:, None], torch.randn(1, 256)
    assert torch.equal(look_up(codes, table), table.T)


def test_what_does_not_fit_is_an_error():
    codes = torch.zeros(3, 4, dtype=torch.uint8)
    for table in (torch.ones(255), torch.ones(3, 256), torch.ones(4, 255), torch.ones(256, 4)):
        with pytest.raises(ValueError, match="does not fit"):
            look_up(codes, table)
    for matrix, table in ((codes[0], torch.zeros(256, dtype=torch.uint8)), (codes, torch.ones(256))):
        with pytest.raises(ValueError, match="only matrices of codes are packed"):
            look_up(matrix, table, packed=True)
    with pytest.raises(ValueError, match="codes of one shape"):
        look_up_pairs(codes, codes[:2], torch.ones(256, 256))
    with pytest.raises(ValueError, match="codes of one shape"):
        look_up_pairs(codes, codes, torch.ones(256))


def test_operators_are_registered_right():
    codes = torch.randint(16, (6, 5), dtype=torch.uint8)
    for table in (torch.rand(256), torch.zeros(5, 256, dtype=torch.uint8)):
        torch.library.opcheck(OPS.look_up_codes.default, (codes, table))
    torch.library.opcheck(OPS.look_up_codes.default, (codes, torch.zeros(256, dtype=torch.uint8), True))
    torch.library.opcheck(OPS.look_up_pairs.default, (codes, codes, torch.rand(256, 256)))
