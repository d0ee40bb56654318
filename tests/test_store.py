"""Arrays in files: what is written is read, whatever part of a file is in memory; folders of other work are refused."""

from __future__ import annotations

import pytest
import torch

from dqconvert.errors import CheckpointError, ConfigError
from dqconvert.store import Array, Store, digest, in_file, take


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.bool, torch.int64])
@pytest.mark.parametrize("shape", [(50, 3), (50,), (50, 2, 2), (0, 3), (50, 0)])
def test_rows_are_what_was_written(dtype, shape, tmp_path):
    rows = torch.randint(0, 2, shape).to(dtype)
    array = Array(tmp_path / "rows", shape, dtype)
    for start in range(0, shape[0], 7):
        array.write(start, rows[start : start + 7])
    assert torch.equal(array.read(0, shape[0]), rows)
    assert torch.equal(array.read(shape[0] // 3, shape[0] // 2), rows[shape[0] // 3 : shape[0] // 2])
    assert torch.equal(array.mapped(), rows)
    assert torch.equal(array.mapped(private=True), rows)


@pytest.mark.parametrize("window", [1, 100, 5000, 1 << 20])
def test_rows_are_taken_a_part_of_the_file_at_a_time(window, tmp_path):
    rows = torch.randn(3000, 5)
    array = Array(tmp_path / "rows", (3000, 5), torch.float32)
    array.write(0, rows)
    assert in_file(array.mapped())
    assert not in_file(array.mapped(private=True))
    for ids in (
        torch.randperm(3000)[:400].sort().values,
        torch.tensor([0, 0, 2999]),
        torch.tensor([], dtype=torch.int64),
    ):
        assert torch.equal(take(array.mapped(), ids, window, mapped=True), rows[ids])


def test_a_hash_knows_values_shape_and_type():
    x = torch.randn(2, 3 << 20)
    y = x.clone()
    y[1, -1] += 1
    assert digest(x, False) == digest(x.clone(), False)
    assert (
        len({digest(one, False) for one in (x, y, x.view(-1), x.view(torch.int32), torch.tensor(1), torch.tensor(2))})
        == 6
    )


def test_work_goes_on_in_its_own_folder(tmp_path):
    store = Store(tmp_path / "work", "one")
    store.array("rows", (3,), torch.int64).write(0, torch.arange(3))
    store.finish("part", 2)
    with pytest.raises(ConfigError, match="another process"):
        Store(tmp_path / "work", "one")
    store.close()
    again = Store(tmp_path / "work", "one")
    assert again.done("part") == 2
    assert again.done("other") == 0
    assert again.array("rows").read(0, 3).tolist() == [0, 1, 2]
    again.close()
    with pytest.raises(ConfigError, match="another module, graph or features"):
        Store(tmp_path / "work", "other")
    (tmp_path / "work" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="empty folder"):
        Store(tmp_path / "work", "one")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        Store(tmp_path / "file", "one")
