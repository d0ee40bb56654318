"""Linear layers that add up as the fused operators do, for the graph that is not fused.

Sums in another order differ in the last bit, which moves a code by one where a value lies between two codes. Tests that
compare with these layers need no tolerance for that, behind which a mistake could hide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqconvert.kernels.cpu.llvm.multiply import MOST
from dqconvert.kernels.linear import Product

torchs = nn.functional.linear


def in_our_order(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear layer and its gradients, with the values of ours where ours makes any."""
    y = torchs(x, weight, bias)
    if _ours(x, weight, bias, y):
        y.data.copy_(torch.from_numpy(Product(x, weight, bias).rows()))
    return y


def _ours(*tensors: Tensor | None) -> bool:
    x, weight, *_ = tensors
    assert x is not None
    assert weight is not None
    types = {t.dtype for t in tensors if t is not None}
    if len(types) > 1 or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return False
    traced = torch._C._len_torch_function_stack() > 0
    return not traced and x.dim() == 2 and len(x) > 0 and weight.numel() * weight.itemsize <= MOST


def always(monkeypatch) -> None:
    """Where an operator falls back on torch's layer, the order is to be the same, too."""
    monkeypatch.setattr(nn.functional, "linear", in_our_order)
