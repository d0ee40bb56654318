"""Whether a call can go straight to its implementation.

Every operator is registered with torch, for those that look at operators: torch.compile, torch.export, profilers.
A registered operator written in Python costs about a tenth of a millisecond a call, which is more than many of ours
take, so where nobody looks it is passed by.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ORDINARY = (Tensor, torch.nn.Parameter)


def direct(*tensors: Tensor | None) -> bool:
    """Whether nobody looks: eager execution on the CPU, of ordinary tensors."""
    return (
        all(t is None or (type(t) in _ORDINARY and t.device.type == "cpu") for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._autograd._profiler_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
    )
