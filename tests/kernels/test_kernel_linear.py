"""`linear`: torch's, in memory that is used again; and with a chain behind it, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chain_cases import INT8, NEVER, PLACES, as_ranges, by_place, chain_of

from dqconvert.kernels import Chain, Ranged, Scheme, linear, quantize_chain, quantize_linear
from dqconvert.kernels.cpu.chain import quantize
from dqconvert.kernels.cpu.entry import CHUNK
from dqconvert.kernels.linear import Product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 5), (7, 5), (3, 4, 5), (9000, 5), (7, 0)], ids=str)
def test_linear_is_torchs(shape, bias, dtype):
    leaves = [torch.randn(shape), torch.randn(40, shape[-1]), *([torch.randn(40)] if bias else [])]
    mine, theirs = ([t.to(dtype).requires_grad_() for t in leaves] for _ in range(2))
    y, want = linear(*mine), F.linear(*theirs)
    torch.testing.assert_close(y, want)
    upstream = torch.randn_like(want)
    y.backward(upstream)
    want.backward(upstream)
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_linear_of_strided_matrices():
    x, weight = torch.randn(5, 9).t(), torch.randn(5, 40).t()
    torch.testing.assert_close(linear(x, weight, torch.randn(80)[::2] * 0), F.linear(x, weight))


def test_linear_saves_only_what_its_gradients_need():
    x, weight = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear(x, weight)
    (kept,) = (t for t in saved if t.numel() > 0)
    assert torch.equal(kept, x)


def test_linear_gradcheck():
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (2, 3), (2,))]
    assert torch.autograd.gradcheck(linear, leaves)
    assert torch.autograd.gradgradcheck(linear, leaves)


def test_gradients_of_gradients_add_up_in_the_order_of_torch():
    def descend(function, weight, x):
        y = torch.zeros_like(x, requires_grad=True)
        for _ in range(3):
            energy = function(torch.tanh(function(x + y, weight)), weight).square().sum()
            y = y - 0.1 * torch.autograd.grad(energy, y, create_graph=True)[0]
        return torch.autograd.grad(y.sum(), weight)[0]

    for _ in range(10):
        x, weight = torch.randn(10, 8), torch.randn(8, 8, requires_grad=True)
        assert torch.equal(descend(linear, weight, x), descend(F.linear, weight, x))


@pytest.mark.sample(7)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 7, 40, 64, 89])
@pytest.mark.parametrize("depth", [1, 5, 64, 130])
def test_products_of_our_own_are_torchs_in_double_precision(depth, columns, dtype, threads):
    wide = Scheme(-(2**40), 2**40, True, 0.0, -1.0, False, False)  # so fine that nothing is rounded
    ends = [torch.tensor(-1e4), torch.tensor(1e4)]
    leaves = [torch.randn(1000, depth), torch.randn(columns, depth), torch.randn(columns)]
    mine = [t.to(dtype).requires_grad_() for t in leaves]
    theirs = [t.detach().double().requires_grad_() for t in leaves]
    y, want = quantize_linear(*mine, Chain.of((None, wide, None), ends))[0], F.linear(*theirs)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    upstream = torch.randn_like(want)
    y.backward(upstream.to(dtype))
    want.backward(upstream)
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad.double(), two.grad, rtol=tolerance, atol=tolerance * 30)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_rows_go_through_the_chain_while_ranges_grow(places, relu, threads):
    schemes = dict.fromkeys(places, INT8)
    ranges, weight, other = as_ranges(NEVER * len(places)), torch.randn(24, 40), torch.randn(900, 24)
    options = {"other": other, "alpha": torch.tensor([0.7]), "protected": torch.rand(900) < 0.2, "relu": relu}
    for step in range(4):
        x = torch.randn(900, 40) * (1 + step / 3)
        rows = torch.from_numpy(Product(x, weight, None).rows())
        want, ends = quantize_chain(rows, Chain.of(by_place(schemes), ranges, **options))
        y, new, _ = quantize_linear(x, weight, None, Chain.of(by_place(schemes), ranges, **options))
        assert torch.equal(y, want)
        assert torch.equal(new, ends)
        ranges = list(new.unbind())


def test_rows_that_are_kept_are_not_made_again():
    x, weight, place = torch.randn(300, 40), torch.randn(24, 40), torch.empty(300, 24)
    grown = Chain.of((INT8, None, None), as_ranges((-0.1, 0.1)))
    product = Product(x, weight, None, kept=place)
    y, *_ = quantize(product, grown)
    assert product.again
    assert np.shares_memory(product.stored().rows(), place.numpy())
    assert torch.equal(y, quantize(Product(x, weight, None), grown)[0])
    within = Product(x, weight, None)
    quantize(within, Chain.of((INT8, None, None), as_ranges((-1e3, 1e3))))
    assert not within.again


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300, 40, 24), (0, 5, 3), (7, 1, 1), (2000, 130, 9), (50, 700, 130)], ids=str)
@pytest.mark.parametrize("places", [(), (1,), (0, 1, 2)], ids=str)
def test_rows_rounded_on_the_way_in(places, shape, dtype, threads):
    """As if they were rounded before: result, ranges and gradients, while ranges grow and when they are settled."""
    rows, depth, columns = shape
    schemes = by_place(dict.fromkeys(places, INT8))
    entry = INT8._replace(p=0.01, clip=True)
    ranges, before = as_ranges(NEVER * len(places)), as_ranges(NEVER)
    leaves = [torch.randn(s).to(dtype).requires_grad_() for s in ((columns, depth), (columns,))]
    protected = torch.rand(rows) < 0.2
    for step in range(3):
        x = (torch.randn(rows, depth) * (1 + step / 3)).to(dtype)
        rounded, end = quantize_chain(x, Chain.of((None, entry, None), before, protected=protected))
        want, ends, _ = quantize_linear(rounded, *leaves, Chain.of(schemes, ranges, protected=protected))
        chain = Chain.of(schemes, ranges, protected=protected)
        y, new, range_ = quantize_linear(x, *leaves, chain, Ranged.of(entry, before))
        # Where nothing else is rounded, the product beside an entry is ours and the other one torch's.
        exact = {"rtol": 0, "atol": 0} if places else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(y, want, **exact)
        assert torch.equal(new, ends)
        assert torch.equal(range_, end)
        upstream = torch.randn_like(want)
        one, two = (torch.autograd.grad(result, leaves, upstream) for result in (y, want))
        torch.testing.assert_close(one, two, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)
        before, ranges = list(range_.unbind()), list(new.unbind())


def test_what_is_rounded_on_the_way_in_is_not_kept():
    x, weight = torch.randn(500, 64), torch.randn(8, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        never = as_ranges(NEVER)
        quantize_linear(x, weight, None, Chain.of((None, INT8, None), never), Ranged.of(INT8, never))
    large = [t for t in kept if t.numel() * t.itemsize >= x.numel() * 4]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


@pytest.mark.sample(3)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("trained", [("x",), ("x", "weight"), ("x", "weight", "offset")], ids=str)
@pytest.mark.parametrize(("depth", "columns"), [(37, 24), (700, 130)])
def test_gradients_of_what_is_rounded_on_the_way_in(depth, columns, trained, clip, threads):
    """Those of the rows rounded before: none of clipped ones if the scheme says so."""
    entry = INT8._replace(p=0.05, clip=clip)
    values = {"x": torch.randn(700, depth), "weight": torch.randn(columns, depth), "offset": torch.randn(columns)}
    leaves = {name: value.requires_grad_(name in trained) for name, value in values.items()}
    protected, before = torch.rand(700) < 0.2, as_ranges(NEVER)
    rounded, _ = quantize_chain(leaves["x"], Chain.of((None, entry, None), before, protected=protected))
    rest = leaves["weight"], leaves["offset"], Chain.of((None, INT8, None), before, protected=protected)
    want, *_ = quantize_linear(rounded, *rest)
    y, *_ = quantize_linear(leaves["x"], *rest, Ranged.of(entry, before))
    upstream, inputs = torch.randn_like(want), [leaves[name] for name in trained]
    two = torch.autograd.grad(want, inputs, upstream)
    for graph in (True, False):  # through torch's own operators, and through the loops
        one = torch.autograd.grad(y, inputs, upstream, retain_graph=True, create_graph=graph)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
    assert bool((one[0][~protected] == 0).any()) == clip
    assert not (one[0][protected] == 0).any()


def test_a_large_weight_takes_rows_a_few_at_a_time(threads):
    """More than are rounded at once: the same product and gradients, and none that nobody wants."""
    rows, depth, columns = 2 * CHUNK // 700 + 9, 700, 130
    leaves = [torch.randn(rows, depth), torch.randn(columns, depth) / 30, torch.randn(columns)]
    protected, entry = torch.rand(rows) < 0.2, INT8._replace(p=0.01, clip=True)
    for wanted in ((0, 1, 2), (1,), (0,)):
        mine, theirs = ([leaf.clone().requires_grad_(i in wanted) for i, leaf in enumerate(leaves)] for _ in range(2))
        y, _, new = quantize_linear(*mine, Chain.of(protected=protected), Ranged.of(entry, as_ranges(NEVER)))
        rounded, ends = quantize_chain(theirs[0], Chain.of((None, entry, None), as_ranges(NEVER), protected=protected))
        want = F.linear(rounded, *theirs[1:])
        assert torch.equal(new, ends)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
        upstream = torch.randn_like(y)
        y.backward(upstream)
        want.backward(upstream)
        for one, two in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-3)


def test_operators_keep_their_contract():
    leaves = [torch.randn(s, requires_grad=True) for s in ((9, 5), (4, 5), (4,))]
    frozen, ends, nothing = {1: INT8._replace(observe=False)}, torch.tensor([-1.0, 1.0]), (None,) * 3
    torch.library.opcheck(
        torch.ops.dqconvert.quantize_linear.default, (*leaves, *nothing, *chain_of(frozen, ends, relu=True))
    )
    x, weight, _ = (t.detach() for t in leaves)
    entry, protected = Ranged.of(INT8, as_ranges([-2.0, 2.0])), torch.arange(9) > 6
    chain = chain_of(frozen, ends, relu=True, protected=protected)
    torch.library.opcheck(torch.ops.dqconvert.quantize_linear.default, (x, *leaves[1:], *entry, *chain))
    bits = torch.randint(4, (9, 4), dtype=torch.uint8)
    for wanted, rounded in ((True, (*nothing, None)), (False, (*entry.frozen, protected))):
        which = [wanted, True, True, False, False, False]
        back = (torch.randn(9, 4), bits, x, weight, None, None, *rounded, None, False, which)
        torch.library.opcheck(torch.ops.dqconvert.quantize_linear_grad.default, back)
