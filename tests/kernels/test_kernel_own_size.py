"""`own_size`: copies, whose number of edges compiled code takes for a number of its own."""

import torch

from dqconvert.kernels import own_size


def test_results_are_copies():
    edge_index, weight = torch.randint(5, (2, 7)), torch.rand(7)
    one, two = own_size([edge_index, weight])
    assert torch.equal(one, edge_index)
    assert torch.equal(two, weight)
    assert one.data_ptr() != edge_index.data_ptr()


def test_gradients_pass():
    weight = torch.rand(7, requires_grad=True)
    own_size([torch.randint(5, (2, 7)), weight])[1].sum().backward()
    assert torch.equal(weight.grad, torch.ones(7))


def test_the_operator_keeps_its_contract():
    kinds = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(
        torch.ops.dqconvert.own_size, ([torch.randint(5, (2, 7)), torch.rand(7, requires_grad=True)],), test_utils=kinds
    )
