"""Linear layers that add up as the fused operators do, for the graph that is not fused.

Sums in another order differ in the last bit, which moves a code by one where a value lies between two codes. Tests that
compare with these layers need no tolerance for that, behind which a mistake could hide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqconvert.kernels._multiply import MOST
from dqconvert.kernels.linear import Product

torchs = nn.functional.linear


def in_our_order(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear layer and its gradients, with the values of ours where ours makes any."""
    y = torchs(x, weight, bias)
    tensors = [x, weight, y] if bias is None else [x, weight, y, bias]
    known = {t.dtype for t in tensors} in ({torch.float32}, {torch.float64}) and not torch.is_autocast_enabled("cpu")
    if (
        known
        and not torch._C._len_torch_function_stack()
        and x.dim() == 2
        and len(x)
        and weight.numel() * weight.itemsize <= MOST
    ):
        y.data.copy_(torch.from_numpy(Product(x, weight, bias).rows()))
    return y


def always(monkeypatch) -> None:
    """Where an operator falls back on torch's layer, the order is to be the same, too."""
    monkeypatch.setattr(nn.functional, "linear", in_our_order)
