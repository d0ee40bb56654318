"""What a module that is prepared again says of itself."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch_geometric.nn import GCN

import dqconvert
from dqconvert import presets


def test_remarks_of_the_old_config_are_gone_also_from_files(tmp_path):
    model = GCN(6, 8, 2, 3, improved=True)
    inputs = torch.randn(20, 6), torch.randint(20, (2, 60))
    on_nodes = replace(presets["int8-dq"], norm="nodes")
    module, report = dqconvert.prepare(model, on_nodes, inputs)
    assert any("norm='nodes'" in remark for remark in report.remarks)
    dqconvert.calibrate(module, inputs)
    dqconvert.save(module, tmp_path / "a.dq")
    for again in (module, dqconvert.load(tmp_path / "a.dq", model)):
        assert again.report.remarks == report.remarks
        other, found = dqconvert.prepare(again, "int8-dq")
        assert not any("norm='nodes'" in remark for remark in found.remarks)
        assert dqconvert.prepare(other, on_nodes).report.remarks == report.remarks
