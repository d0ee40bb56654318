"""The range of messages, as the definition finds it and as the loops do."""

from __future__ import annotations

import pytest
import torch

from dqconvert.kernels import Ranged, Scheme, Sent, edge_order, observe_messages, propagate
from dqconvert.kernels.observe_messages import observe_messages_operator

NEVER = (torch.tensor(torch.inf), torch.tensor(-torch.inf))


@pytest.mark.parametrize("edges", [0, 300])
@pytest.mark.parametrize("heads", [None, 1, 2])
@pytest.mark.parametrize("momentum", [-1.0, 0.1])
@pytest.mark.parametrize("p", [0.0, 0.05])
@pytest.mark.parametrize("masked", [False, True])
def test_the_range_is_that_of_the_definition_and_of_message_passing(p, momentum, heads, edges, masked):
    torch.manual_seed(edges)
    dtype = torch.float64 if heads == 2 else torch.float32
    x, sender, receiver = torch.randn(20, 4, dtype=dtype), torch.randint(15, (edges,)), torch.randint(20, (edges,))
    weight = None if heads is None else torch.rand(edges, heads, dtype=dtype)
    orders = edge_order(receiver, sender, 20), edge_order(sender, receiver, 20)
    scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=p, momentum=momentum, observe=True, clip=False)
    mask = torch.arange(20) % 3 == 0 if masked else None
    for ends in (NEVER, (torch.tensor(-0.5), torch.tensor(0.25))):
        sent, messages = Sent.of(x, weight, sender, receiver, *orders, mask), Ranged.of(scheme, ends)
        found = observe_messages(sent, messages)
        torch.testing.assert_close(found, observe_messages_operator.definition(sent, messages))
        if x.size(0) and edges:
            assert torch.equal(found, propagate(sent, messages)[2])


def test_the_operator_keeps_its_contract():
    x, edges = torch.randn(3, 4), torch.tensor([0, 2, 2])
    orders = [edge_order(edges, edges, 3)] * 2
    scheme = Scheme(quant_min=-8, quant_max=7, symmetric=False, p=0.0, momentum=-1.0, observe=True, clip=False)
    args = *Sent.of(x, None, edges, edges, *orders), *Ranged.of(scheme, NEVER)
    torch.library.opcheck(torch.ops.dqconvert.observe_messages.default, args)
