"""A write into any view is seen by all that share its memory, in the traced, prepared, integer and saved forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dqconvert
import zoo
from dqconvert import QConfig
from dqconvert.errors import LoweringError
from dqconvert.ops import writes
from dqconvert.trace import trace


class Model(nn.Module):
    """A linear layer, a function of what it returns, another linear layer."""

    def __init__(self, function):
        super().__init__()
        self.lin, self.out, self.function = nn.Linear(6, 8), nn.Linear(8, 4), function
        self.relu, self.elu, self.bn = nn.ReLU(inplace=True), nn.ELU(inplace=True), nn.BatchNorm1d(8)
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x, edge_index):
        return self.out(self.function(self, self.lin(x), edge_index))


def view_of_a_view(self, h, e):
    z = torch.zeros_like(h)
    z[1:][h[1:, 0] > 0] = 1.5
    z[1:][0] = h[0]
    return z + h


def flat_and_transposed(self, h, e):
    z = torch.zeros_like(h)
    z.view(-1)[3] = h[2, 1]
    z.T[0] += 1
    z.t().unsqueeze(0)[0, 2] = 4
    return z + h


def read_by_an_earlier_view(self, h, e):
    h = h * 1
    row, flat = h[0], h.view(-1)
    h.add_(1)
    h[0] = 2
    return h + row + flat[:8]


def several_views(self, h, e):
    h = h * 1
    h.permute(1, 0)[2:4] = 0
    h.narrow(0, 1, 2).add_(1)
    h.select(1, 3).mul_(3)
    h.unflatten(1, (2, 4))[:, 1] = 0.5
    h.movedim(0, 1)[5] -= 1
    return h


def parts_of_it(self, h, e):
    with torch.no_grad():
        z = torch.ones_like(h)
        left, right = z.split(4, dim=1)
        left.mul_(2)
        right[0] = 3
        z.unbind(1)[1].zero_()
        z.chunk(2, dim=1)[1].sub_(1)
    return z * h


def a_residual(self, h, e):
    out = self.bn(h)
    identity = out
    out = self.relu(out)
    return out * 2 + identity


def an_activation_of_a_view(self, h, e):
    h = h * 1
    self.relu(h[:, :4])
    return h + h[:, :1]


def an_activation_whose_gradient_is_of_its_result(self, h, e):
    g = h * 1
    identity = g
    return self.elu(g) + identity + F.celu(h * 1, inplace=True)


def an_unrolled_loop(self, h, e):
    outputs, state = h.new_zeros(h.size(0), 3, 8), h
    for step in range(3):
        state = torch.tanh(state)
        outputs[:, step] = state
    return outputs.sum(1)


def dense_rows(self, h, e):
    out = h.new_full([h.size(0) * 2, 8], 0.25)
    out[torch.arange(h.size(0)) * 2] = h
    return out.view(h.size(0), 2, 8)[:, 0] + out.view(h.size(0), 2, 8)[:, 1]


def masks(self, h, e):
    h = h.clone()
    mask = h > 0
    mask &= h < 1
    h[mask] = 0
    h.masked_fill_(~mask, 2.0)
    h.index_add_(0, e[0], h[e[1]].detach())
    h.scatter_(1, torch.zeros(h.size(0), 1, dtype=torch.long), 0.5)
    return h


def past_gradients(self, h, e):
    h = h * 1
    h.detach().clamp_(min=0)
    h.data[0] = 5.0
    with torch.no_grad():
        h[1].mul_(2)
    return h * 2


def a_result_that_is_given(self, h, e):
    with torch.no_grad():
        total = torch.empty_like(h)
        torch.add(h, 1, out=total)
        torch.mul(total, 2, out=total[:, :8])
    return h + total


def another_type(self, h, e):
    h = h * 1
    h += torch.ones(8, dtype=torch.float64)
    return h


def a_turned_tensor(self, h, e):
    h = h * 1
    g = h
    g.t_()
    g[0] = 1
    return g.t_() + 1


def detached_in_place(self, h, e):
    g = h * 1
    g.detach_()
    g[0] = 7.0
    return h + g


def random_numbers(self, h, e):
    z = torch.empty_like(h)
    z.uniform_()
    return h * z.bernoulli_(0.5)


FUNCTIONS = (
    *(view_of_a_view, flat_and_transposed, read_by_an_earlier_view, several_views, parts_of_it, a_residual),
    *(an_activation_of_a_view, an_activation_whose_gradient_is_of_its_result, an_unrolled_loop, dense_rows, masks),
    *(past_gradients, a_result_that_is_given, another_type, a_turned_tensor, detached_in_place),
    random_numbers,
)


@pytest.mark.sample(7)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_form_sees_every_write(function, tmp_path):
    """Tracing checks values and gradients against the float model, bit for bit."""
    torch.manual_seed(0)
    model = Model(function)
    module = dqconvert.prepare(model, "int8-dq", zoo.graph()).module
    assert not any(map(writes, module.graph.nodes))
    for step in range(2):
        zoo.train_step(module, zoo.graph(seed=step), step)
    inputs = zoo.graph(zoo.OTHER)

    def output(one):
        torch.manual_seed(3)
        with torch.no_grad():
            return one.eval()(*inputs)

    zoo.assert_same(output(dqconvert.prepare(model, QConfig(), zoo.graph()).module), output(model))
    expected = output(module)
    wide = float(expected.abs().max())
    module.fuse = False
    module.recompile()
    torch.testing.assert_close(output(module), expected, rtol=1e-4, atol=1e-5)
    integer = dqconvert.convert(module)
    torch.testing.assert_close(output(integer), expected, rtol=0, atol=0.02 * wide)
    for one, like in ((module, Model(function)), (integer, None)):
        dqconvert.save(one, tmp_path / "file")
        zoo.assert_same(output(dqconvert.load(tmp_path / "file", like)), output(one))


def stored(self, h, e):
    with torch.no_grad():
        self.count += h.mean(0)
        self.count[:4].add_(1)
    return h + self.count


def seen_by_a_layer(self, h, e):
    with torch.no_grad():
        self.bn.running_mean[0] = 3.0
        self.out.weight.clamp_(-0.2, 0.2)
    return self.bn(h) + self.bn.running_mean


@pytest.mark.parametrize("function", [stored, seen_by_a_layer], ids=lambda function: function.__name__)
def test_what_a_forward_writes_into_the_model_is_stored_there(function):
    model = Model(function)
    module = trace(model, zoo.graph()).module
    for _ in range(2):
        zoo.assert_same(module(*zoo.graph()), model(*zoo.graph()))
    zoo.assert_same(dict(module.state_dict()), dict(model.state_dict()))


class Masked(nn.Module):
    """Masks its input in place, as a careless user does."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 4)

    def forward(self, x, edge_index):
        x[:, 0] = 0
        edge_index[0].clamp_(max=3)
        return self.lin(x)[edge_index[0]]


def test_arguments_are_written_as_the_float_model_writes_them():
    model, example = Masked(), zoo.graph()
    kept = [tensor.clone() for tensor in example]
    module = dqconvert.prepare(model, "int8-dq", example).module
    zoo.assert_same(list(example), kept)  # preparing runs on copies
    ours, theirs = zoo.graph(zoo.OTHER), zoo.graph(zoo.OTHER)
    module(*ours)
    model(*theirs)
    zoo.assert_same(list(ours), list(theirs))
    with pytest.raises(LoweringError, match=r"test_memory\.py:\d+: the forward writes into its argument 'x'"):
        dqconvert.convert(module)


def test_an_integer_module_keeps_no_state_and_says_so():
    module = dqconvert.prepare(Model(stored), "int8-dq", zoo.graph()).module
    zoo.train_step(module, zoo.graph(), 0)
    with pytest.raises(LoweringError, match=r"test_memory\.py:\d+: the forward writes into 'count' in evaluation"):
        dqconvert.convert(module)


def test_an_activation_in_place_is_the_activation():
    """Later passes know it: it runs within a chain, and on codes."""
    module = dqconvert.prepare(Model(a_residual), "int8-dq", zoo.graph()).module
    assert module.relu.inplace is False
    assert any("chain" in fusion.op for fusion in module.fusions)


RETURNED = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "type": lambda x: x.type(torch.float32),
    "type_as": lambda x: x.type_as(torch.zeros(1)),
    "two in a row": lambda x: x.contiguous().float(),
}


class Returned(nn.Module):
    """Reads what a call that may return its argument itself returned, and the argument."""

    def __init__(self, call):
        super().__init__()
        self.call, self.lin = call, nn.Linear(8, 4)

    def forward(self, x):
        returned = self.call(x * 1)
        x = self.lin(x * 1)
        other = self.call(x)
        return x + 1, other * 2, returned.type_as(x)


@pytest.mark.parametrize("call", RETURNED.values(), ids=RETURNED)
def test_what_a_cast_returned_as_it_was_is_not_what_it_was_given(call):
    model, x = Returned(call), torch.randn(5, 8, dtype=torch.float64)
    traced = trace(model, (x.float(),)).module
    for got, wanted in zip(traced.double()(x), model.double()(x), strict=True):
        assert got.dtype is wanted.dtype
        assert torch.equal(got, wanted)


class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 4)

    def forward(self, x):
        h = self.lin(x)
        with torch.no_grad():
            same = h.float()
        same.add_(self.lin.bias)
        h[0] = 2
        return h * 3, same * 5, self.lin.weight.float() @ x.t(), self.lin.weight.sum()


def test_writes_into_what_a_cast_returned_as_it_was_reach_both():
    model, x = Writes(), torch.randn(5, 8)
    for got, wanted in zip(trace(model, (x,)).module(x), model(x), strict=True):
        assert torch.equal(got, wanted)
