"""Each operation that has a form in ONNX computes there what torch computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from test_table import FURTHER, NOT_CALLED, OF_TORCH, X, Y, function_of, numbers, results

from dqconvert.errors import ExportError
from dqconvert.onnx.builder import Builder
from dqconvert.onnx.inputs import Inputs
from dqconvert.onnx.values import TYPES, Wire
from dqconvert.onnx.walk import WRITERS
from dqconvert.onnx.writing import OPERATIONS, Writing
from dqconvert.ops import TORCH
from dqconvert.trace.note import Note

assert WRITERS  # imported, so that they are registered

REFUSED = {
    **dict.fromkeys(("half", "bfloat16"), "is cast to"),
    **dict.fromkeys(("and", "or", "xor", "invert"), "bits of integers"),
    "roll": "no dimension",
    "floor_divide": "",
    "item": "",
    "size": "",
    "squeeze": "",
}
"""What takes other arguments than those of the table: numbers, sizes, booleans."""

ELSEWHERE = ("dropout", "getattr", "embedding", "numel")
NAMES = [
    name
    for name, op in OF_TORCH.items()
    if ((TORCH, name) in OPERATIONS or op.onnx) and name not in (*NOT_CALLED, *REFUSED, *ELSEWHERE)
]


MORE = {
    **dict.fromkeys(("log_softmax", "logsumexp"), (1,)),
    "index_add": (0, torch.tensor([0, 0, 1, 5, 2, 2]), Y),
}


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", NAMES)
def test_operations_in_onnx(name, monkeypatch):
    if name in MORE:
        monkeypatch.setitem(FURTHER, name, MORE[name])
    op = OF_TORCH[name]
    x = numbers(op) if op.pointwise else X
    given = [x, Y] if op.joins else x
    function = (getattr(torch.Tensor, name, None) if op.moves and not op.joins else None) or function_of(name)
    if name in ("asin", "acos", "atanh", "acosh"):
        x = given = x + 1 if name == "acosh" else (x / 8)
    with torch.no_grad():
        try:
            expected = results(op, given)
        except (TypeError, RuntimeError):
            pytest.skip("takes something else than what the table of tests has for it")
    file = Builder()
    w = Writing(file, Inputs(file), exact=False, scatters=False, plain=False)
    note = Note(sizes=((6, 4), (6, 4)), dtype=x.dtype)
    wire = w.inputs.tensor((("argument", "x"),), note)
    w.known(wire, note)
    w.note = Note(sizes=(tuple(expected[0].shape),) * 2, dtype=expected[0].dtype)
    found = w.call(op, function, ([wire, Y] if op.joins else wire, *FURTHER.get(name, ())), {})
    wires = [one for one in (found if isinstance(found, tuple) else (found,)) if isinstance(one, Wire)]
    assert len(wires) == len(expected)
    outputs = []
    for place, one in enumerate(wires):
        shape = [f"size_{place}_{dim}" for dim in range(one.ndim)]
        name = file.returned(f"y{place}", one)
        outputs.append(helper.make_tensor_value_info(name, TYPES[one.dtype], shape))
    graph = helper.make_graph(file.nodes, op.name, list(w.inputs.infos.values()), outputs, file.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", file.opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for result, want, one in zip(session.run(None, {"x": x.numpy()}), expected, wires, strict=True):
        assert (one.dtype, one.ndim) == (want.dtype, want.dim())
        np.testing.assert_allclose(result, want.numpy(), rtol=2e-5, atol=2e-6)


def test_most_operations_are_tested():
    assert len(NAMES) > 90


@pytest.mark.parametrize("name", [name for name, why in REFUSED.items() if why])
def test_refusals(name):
    file = Builder()
    w = Writing(file, Inputs(file), exact=False, scatters=False, plain=False)
    op = OF_TORCH[name]
    note = Note(sizes=((6, 4),) * 2, dtype=torch.int32 if op.onnx else torch.float32)
    with pytest.raises(ExportError, match=REFUSED[name]):
        w.call(op, function_of(name), (w.inputs.tensor((("argument", "x"),), note), *FURTHER.get(name, ())), {})
