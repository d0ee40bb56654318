"""Learned ranges: the formula of LSQ written down once more, and the compiled loops against the definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from chain_cases import ADDED, addends, chain_of, masks

from dqconvert.errors import InputShapeError
from dqconvert.kernels import (
    Chain,
    Ranged,
    Scheme,
    Sent,
    edge_order,
    fake_quantize,
    learned_chain,
    learned_fake_quantize,
    learned_linear,
    learned_propagate,
    qparams,
    quantize_chain,
)
from dqconvert.kernels.chain import plain_quantize_chain
from dqconvert.kernels.cpu.narrow import COLUMNS
from dqconvert.kernels.learned import learned_chain_grad, plain_learned_chain_grad
from dqconvert.kernels.learned_linear import (
    learned_linear_grad,
    learned_linear_operator,
    plain_learned_linear,
    plain_learned_linear_grad,
)
from dqconvert.kernels.learned_propagate import (
    learned_propagate_grad,
    learned_propagate_operator,
    plain_learned_propagate,
    plain_learned_propagate_grad,
)


def scheme(bits):
    low = -(2 ** (bits - 1))
    return Scheme(low, low + 2**bits - 1, symmetric=False, p=0.0, momentum=-1.0, observe=False, clip=False)


def lsq(x, scale, quant_min, quant_max):
    """Equation 1, and by autograd equations 2 and 3: `round` passes straight through, `clamp` as it is."""
    v = (x / scale).clamp(quant_min, quant_max)
    return (v + (v.round() - v).detach()) * scale


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_step_has_the_gradient_of_lsq(bits):
    torch.manual_seed(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    x, grad = torch.randn(40, 8, dtype=torch.float64) * 4, torch.randn(40, 8, dtype=torch.float64)
    found = []
    for how in (lsq, None):
        scale = torch.tensor(0.5, requires_grad=True)
        value = x.clone().requires_grad_()
        y = how(value, scale, low, high) if how else learned_fake_quantize(value, low * scale, high * scale, low, high)
        y.backward(grad)
        found.append((y.detach(), value.grad, scale.grad))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-5, atol=1e-5)


def test_an_offset_has_the_gradient_of_lsq_plus():
    """Bhalgat et al., equation 6: 1 where a value is clipped, 0 elsewhere; the step as given."""
    x = torch.tensor([-9.0, -0.4, 0.3, 12.0])
    lo, hi = (torch.tensor(end, requires_grad=True) for end in (-2.0, 13.0))
    learned_fake_quantize(torch.cat([x, x[:1]]), lo, hi, -8, 7).sum().backward()
    assert math.isclose(lo.grad + hi.grad, 2.0, rel_tol=1e-6)  # both move with the offset


@pytest.mark.parametrize("channel_dim", [None, 0, 1, -1])
def test_values_are_those_of_fake_quantization(channel_dim):
    torch.manual_seed(0)
    x = torch.randn(6, 6)
    number = () if channel_dim is None else (6,)
    lo, hi = -torch.rand(number) - 0.5, torch.rand(number) + 0.5
    protected = torch.rand(6) < 0.4
    for row_dim in (0, 1):
        got = learned_fake_quantize(x, lo, hi, -8, 7, protected, row_dim, channel_dim)
        want = fake_quantize(x, *qparams(lo, hi, -8, 7, False), -8, 7, protected, row_dim, channel_dim)
        assert torch.equal(got, want)


def test_each_channel_has_a_gradient_of_its_own():
    torch.manual_seed(0)
    x, grad = torch.randn(9, 3), torch.randn(9, 3)
    ends = [torch.full((3,), end, requires_grad=True) for end in (-1.0, 0.9)]
    learned_fake_quantize(x, *ends, -8, 7, channel_dim=1).backward(grad)
    for c in range(3):
        one = [torch.tensor(end, requires_grad=True) for end in (-1.0, 0.9)]
        learned_fake_quantize(x[:, c], *one, -8, 7).backward(grad[:, c])
        torch.testing.assert_close(torch.stack([end.grad[c] for end in ends]), torch.stack([e.grad for e in one]))


def test_protected_rows_pass_and_say_nothing_of_the_step():
    x = (torch.randn(4, 5) * 9).requires_grad_()
    ends = [torch.tensor(end, requires_grad=True) for end in (-1.0, 1.0)]
    protected = torch.tensor([True] * 4)
    for y in (
        learned_fake_quantize(x, *ends, -8, 7, protected),
        learned_chain(x, Chain.of((None, scheme(4), None), ends, protected=protected, learned=True)),
    ):
        x.grad = None
        y.sum().backward()
        assert torch.equal(y, x)
        assert torch.equal(x.grad, torch.ones(4, 5))
        assert [end.grad.item() for end in ends] == [0.0, 0.0]


def test_a_mask_that_does_not_fit_is_an_error():
    with pytest.raises(InputShapeError, match="one entry per row"):
        learned_fake_quantize(torch.ones(4, 5), torch.tensor(-1.0), torch.tensor(1.0), -8, 7, torch.ones(3).bool())


CHAINS = [(4, 8, 3), (None, 4, None), (4, 4, None), (None, 4, 8)]


def ranges_of(bits, groups=None, high=3.5):
    """The ends of as many ranges as there are grids, all the same or one of each group."""
    ends = torch.tensor([-4.0, high] * sum(b is not None for b in bits))
    return ends if groups is None else ends[:, None] * (1 + torch.arange(3) / 2)


def groups_of(rows):
    return (None, torch.randint(3, (rows,), dtype=torch.uint8))


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ADDED)
@pytest.mark.parametrize("bits", CHAINS, ids=str)
def test_gradients_of_a_chain_are_as_defined(bits, kind, dtype):
    torch.manual_seed(0)
    schemes = {place: scheme(b) for place, b in enumerate(bits) if b is not None}
    for rows in (0, 1, 150):
        extra = {"bias": None, "other": None, "alpha": None, **addends(kind, rows, 16, dtype)}
        for protected, groups in itertools.product(masks(rows).values(), groups_of(rows)):
            for relu in (False, True):
                x, grad = torch.randn(rows, 16, dtype=dtype) * 3, torch.randn(rows, 16, dtype=dtype)
                own = {"protected": protected, "groups": groups, **extra}
                args = (grad, x, chain_of(schemes, ranges_of(bits, groups), relu, **own))
                got, want = learned_chain_grad(*args), plain_learned_chain_grad(*args)
                assert torch.equal(got[0], want[0])
                assert torch.equal(got[2], want[2])
                for one, other in zip(got, want, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 4, COLUMNS - 1, COLUMNS])
def test_narrow_rows_of_groups_are_as_defined(columns, dtype, threads):
    """Values and gradients of one grid, which loops over many rows at once; NaN and infinities, too."""
    for rows in (1, 700, 20_000):
        x, grad = torch.randn(rows, columns, dtype=dtype) * 3, torch.randn(rows, columns, dtype=dtype)
        _, groups = groups_of(rows)
        args = (grad, x, chain_of({1: scheme(4)}, ranges_of((4,), groups), False, protected=None, groups=groups))
        got, want = learned_chain_grad(*args), plain_learned_chain_grad(*args)
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[-1], want[-1], rtol=1e-4, atol=1e-3)
        odd = x.masked_fill(torch.rand(rows, columns) < 0.1, (math.nan, math.inf, -math.inf)[rows % 3])
        for given, clip in itertools.product((x, odd), (True, False)):
            own = chain_of({1: scheme(4)._replace(clip=clip)}, args[2].ranges, False, protected=None, groups=groups)
            values = given.clone().requires_grad_()
            y, _ = quantize_chain(values, own)
            wanted, _, passes = plain_quantize_chain(given, own)
            torch.testing.assert_close(y, wanted, rtol=0, atol=0, equal_nan=True)
            y.backward(grad)
            assert torch.equal(values.grad, torch.where((passes & 2) > 0, grad, 0) if clip else grad)


@pytest.mark.parametrize("heads", [None, 1, 4])
@pytest.mark.parametrize("mean", [False, True])
def test_message_passing_is_as_defined(mean, heads):
    """Isolated nodes, self-loops and edges that are there twice among them."""
    torch.manual_seed(0)
    for nodes, edges in ((1, 0), (1, 3), (60, 150), (200, 9000)):
        x, weight = torch.randn(nodes, 16) * 2, None if heads is None else torch.randn(edges, heads)
        sender, receiver = torch.randint(nodes, (2, edges))
        orders = [edge_order(*ends, nodes) for ends in ((receiver, sender), (sender, receiver))]
        for bits in (4, 8):
            for protected, groups in itertools.product((None, torch.rand(nodes) < 0.3), groups_of(nodes)):
                if groups is not None and heads is None:
                    continue  # rows that are sent as they are have one grid
                sent = Sent.of(x, weight, sender, receiver, *orders, protected)
                rest = (Ranged(ranges_of([bits], groups), *scheme(bits).packed()), mean, groups)
                out = learned_propagate_operator(sent, *rest)
                torch.testing.assert_close(out, plain_learned_propagate(sent, *rest), rtol=1e-5, atol=1e-4)
                for for_x in (True, False):
                    args = (torch.randn(nodes, 16), sent, out, *rest, for_x)
                    both = learned_propagate_grad(*args), plain_learned_propagate_grad(*args)
                    for one, other in zip(*both, strict=True):
                        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", ADDED)
@pytest.mark.parametrize("bits", [*CHAINS, (None, None, None)], ids=str)
@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 5, 3), (170, 33, 20), (100, 64, 64)], ids=str)
def test_a_linear_layer_is_its_product_and_its_chain(shape, bits, kind):
    torch.manual_seed(0)
    rows, depth, columns = shape
    schemes = {place: scheme(b) for place, b in enumerate(bits) if b is not None}
    extra = {"bias": None, "other": None, "alpha": None, **addends(kind, rows, columns)}
    x, weight, grad = (torch.randint(-4, 5, size) / 4 for size in ((rows, depth), (columns, depth), (rows, columns)))
    for protected, groups in itertools.product(masks(rows).values(), groups_of(rows)):
        for relu, entry in itertools.product((False, True), (None, scheme(3))):
            own = {"protected": protected, "groups": groups, **extra}
            how_ = (None, chain_of(schemes, ranges_of(bits, groups), relu, **own))
            if entry is not None:  # whose steps leave products exact
                how_ = (Ranged(ranges_of([entry], groups, high=3.0), *entry.packed()), how_[1])
            given = (x, weight, torch.arange(columns) / 4 if relu else None, *how_)
            y, product = learned_linear_operator(*given)
            torch.testing.assert_close((y, product), plain_learned_linear(*given), rtol=0, atol=0)
            args = (grad, product, *given, True)
            got, want = learned_linear_grad(*args), plain_learned_linear_grad(*args)
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_a_large_weight_goes_by_the_library():
    torch.manual_seed(0)
    x, found = torch.randn(3, 600), []
    for large in (True, False):
        weight = torch.randn(600, 600, generator=torch.Generator().manual_seed(1)) / 20
        weight = weight.requires_grad_() if large else weight[:, :].double().requires_grad_()
        ends = [torch.tensor(end, requires_grad=True) for end in (-2.0, 1.9)]
        chain = Chain.of((None, scheme(8), None), ends, learned=True)
        learned_linear(x.to(weight.dtype), weight, None, chain).square().sum().backward()
        found.append((weight.grad.double(), *(end.grad for end in ends)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=0.5)


def test_rows_that_lie_otherwise_give_the_same():
    torch.manual_seed(0)
    values = torch.randn(16, 30)
    sender, receiver = torch.randint(30, (2, 90))
    orders = edge_order(receiver, sender, 30), edge_order(sender, receiver, 30)
    found = []
    for rows in (values.t(), values.t().contiguous()):
        x = rows.detach().requires_grad_()
        ends = [torch.tensor(end, requires_grad=True) for end in (-1.0, 1.0)]
        out = learned_chain(x, Chain.of((None, scheme(4), None), ends, relu=True, learned=True))
        out = learned_propagate(Sent.of(out, None, sender, receiver, *orders), Ranged.of(scheme(4), ends))
        out.square().sum().backward()
        found.append((out.detach(), x.grad, *(end.grad for end in ends)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_can_be_differentiated():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    ends = [torch.tensor(end, requires_grad=True) for end in (-1.28, 1.27)]
    for y in (
        learned_chain(x, Chain.of((None, scheme(8), None), ends, learned=True)),
        learned_fake_quantize(x, *ends, -128, 127),
    ):
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (twice,) = torch.autograd.grad(grad.sum(), x)
        assert torch.equal(twice, 2.0 * ((x > -1.28) & (x < 1.27)))
