"""LSTM and GRU, whose weights a prepared graph hands over one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dqconvert.onnx.values import Wire
from dqconvert.onnx.writing import Writing, writes
from dqconvert.ops import OURS

_GATES = {nn.LSTM: ("LSTM", (0, 3, 1, 2)), nn.GRU: ("GRU", (1, 0, 2))}
"""By layer: ONNX's operator, and the places of its gates in torch's order."""


@writes("call_with_weights", package=OURS)
def _call_with_weights(w: Writing, module: Any, weights: Any, input: Any, hx: Any = None) -> tuple[Wire, Any]:
    layer = getattr(module, "_user_class", type(module))
    if layer not in _GATES or module.num_layers != 1 or getattr(module, "proj_size", 0):
        raise w.refusal(f"there is no writer of {layer.__name__}, but of LSTM and GRU of one layer")
    kind, order = _GATES[layer]
    suffixes = ("l0", "l0_reverse")[: 1 + module.bidirectional]
    hidden = module.hidden_size
    rows = torch.cat([torch.arange(hidden) + gate * hidden for gate in order])

    def part(name: str) -> Wire:
        values = [w.wire(weights.get(f"{name}_{suffix}", getattr(module, f"{name}_{suffix}"))) for suffix in suffixes]
        both = [w.file.unsqueeze(w.file.gather(value, rows), 0) for value in values]
        return both[0] if len(both) == 1 else w.op("Concat", *both, axis=0)

    bias = w.op("Concat", part("bias_ih"), part("bias_hh"), axis=1) if module.bias else None
    x = w.wire(input)
    if x.ndim != 3:
        raise w.refusal("its input is a single sequence: pass a batch of one")
    steps = w.op("Transpose", x, perm=[1, 0, 2]) if module.batch_first else x
    states = [hx] if isinstance(hx, Wire | Tensor) else list(hx or ())
    how = {"linear_before_reset": 1} if kind == "GRU" else {}
    direction = "bidirectional" if module.bidirectional else "forward"
    given = [steps, part("weight_ih"), part("weight_hh"), bias, None, *map(w.wire, states)]
    results = [(x.dtype, 4), *[(x.dtype, 3)] * (1 + (kind == "LSTM"))]
    y, *last = w.file.ops(kind, given, results, hidden_size=hidden, direction=direction, **how)
    # [steps, directions, batch, hidden] to [steps, batch, directions * hidden], or batch first
    y = w.op("Transpose", y, perm=[2, 0, 1, 3] if module.batch_first else [0, 2, 1, 3])
    sizes = [w.file.size(x, 0), w.file.size(x, 1), hidden * len(suffixes)]
    return w.file.reshape(y, sizes), last[0] if len(last) == 1 else tuple(last)
