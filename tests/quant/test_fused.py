"""What a fused graph calls, against its quantizers called one after the other."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import products
from dqconvert.errors import ObserverError
from dqconvert.kernels import edge_order
from dqconvert.qconfig import QSpec
from dqconvert.quant import FakeQuantize, disable_fake_quant, disable_observer
from dqconvert.quant.fused import FusedChain, chain, dropout, linear
from dqconvert.quant.fused_messages import message_passing
from dqconvert.quant.memo import EdgeOrders, Remembered

SPECS = {
    "int8-dq": {"range": "percentile", "grad": "clip"},
    "int4": {"bits": 4, "range": "percentile", "grad": "clip"},
    "int8-qat": {"range": "ema", "symmetric": True},
    "sampled": {"range": "percentile", "sample": 0.5},
    "per channel": {"granularity": "channel"},
}
"""The last two are not what the operators know, so they go step by step."""


def quantizer(kind="int4"):
    return FakeQuantize(QSpec(**SPECS[kind]), name=kind, signed=True, channels=8, channel_dim=1)


def ranges(*quantizers):
    return [(q.min_val.tolist(), q.max_val.tolist()) for q in quantizers]


def step_by_step(x, first, bias, other, alpha, second, relu, third, protected):
    value = first(x, protected) if first else x
    value = value if bias is None else value + bias
    value = value if other is None else value + (other if alpha is None else alpha * other)
    value = second(value, protected) if second else value
    value = value.relu() if relu else value
    return third(value, protected) if third else value


def added(kind, dtype=torch.float32):
    """bias, other, alpha."""
    bias, other, alpha = torch.randn(8).to(dtype), torch.randn(40, 8).to(dtype), torch.tensor([0.7]).to(dtype)
    found = {"bias": (bias, None, None), "other": (None, other, None), "scaled": (None, other, alpha)}
    return found.get(kind, (None, None, None))


def own_rows(x, steps, protected):
    return chain(x, steps, protected)


def the_same(x):
    return x


def assert_chain_is_its_parts(
    quantizers, extra, relu=True, x=None, protected=None, twins=None, *, fast=own_rows, source=the_same, more=()
):
    """`fast(x, *more, steps, protected)` against the steps one by one on `source(x, *more)`.

    Those of `x` and `more` that need a gradient get the same one.
    """
    twins = copy.deepcopy(quantizers) if twins is None else twins
    x = torch.randn(40, 8).requires_grad_() if x is None else x

    def copied(t):
        return t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t

    results = []
    for number, (first, second, third) in enumerate((quantizers, twins)):
        torch.manual_seed(0)
        given = [copied(t) for t in (x, *more)]
        parts = [None if t is None else t.clone().requires_grad_() for t in extra]
        if number == 0:
            y = fast(*given, FusedChain(first, *parts, second, relu, third), protected)
        else:
            y = step_by_step(source(*given), first, *parts, second, relu, third, protected)
        if y.requires_grad:
            y.float().square().sum().backward()
        results.append([y.detach(), *(t.grad for t in (*given, *parts) if isinstance(t, Tensor) and t.requires_grad)])
    assert [t.dtype for t in results[0]] == [t.dtype for t in results[1]]
    for one, two in zip(*results, strict=True):
        largest = two.abs().max().item() if two.numel() else 0.0
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * (1 + largest))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    assert ranges(*filter(None, quantizers)) == ranges(*filter(None, twins))


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("extra", ["nothing", "bias", "other", "scaled"])
def test_a_chain_is_its_parts(kind, extra):
    for there in itertools.product([True, False], repeat=3):
        if not any(there):
            continue
        quantizers = [quantizer(kind) if yes else None for yes in there]
        for protected in (None, torch.rand(40) < 0.3, torch.ones(40) > 0):
            assert_chain_is_its_parts(quantizers, added(extra), relu=there[0], protected=protected)


@pytest.mark.parametrize("change", ["observer off", "rounding off", "frozen", "eval", "calibrating", "other kind"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_quantizer_that_is_not_as_the_others(which, change):
    quantizers = [quantizer() for _ in range(3)]
    protected = torch.rand(40) < 0.4
    assert_chain_is_its_parts(quantizers, added("bias"), protected=protected)
    changed = quantizers[which]
    if change == "observer off":
        disable_observer(changed)
    elif change == "rounding off":
        disable_fake_quant(changed)
    elif change == "frozen":
        changed.eval()
    elif change == "other kind":
        quantizers[which] = quantizer("sampled")
    else:
        for one in quantizers:
            one.eval()
            one.calibrating = change == "calibrating"
    twins = copy.deepcopy(quantizers)
    for factor in (1, 3):
        x = (factor * torch.randn(40, 8)).requires_grad_()
        assert_chain_is_its_parts(quantizers, added("bias"), x=x, protected=protected, twins=twins)


def test_a_chain_that_never_observed_is_an_error_in_evaluation():
    quantizers = [quantizer().eval() for _ in range(3)]
    with pytest.raises(ObserverError, match="never observed a value"):
        chain(torch.randn(40, 8), FusedChain(quantizers[0], second=quantizers[1], relu=True, third=quantizers[2]), None)


@pytest.mark.parametrize("low", ["x", "added", "both"])
@pytest.mark.parametrize("extra", ["bias", "other", "scaled"])
def test_mixed_types_are_promoted_as_ever(extra, low):
    """As autocast mixes them: a bfloat16 product and float32 parameters."""
    x = torch.randn(40, 8).to(torch.bfloat16 if low in ("x", "both") else torch.float32).requires_grad_()
    parts = added(extra, torch.bfloat16 if low in ("added", "both") else torch.float32)
    assert_chain_is_its_parts([quantizer("int8-dq") for _ in range(3)], parts, x=x)


# -- what makes a chain's rows -------------------------------------------------------------------------------------


def layer(depth=5, dtype=torch.float32, own_bias=True):
    """The weight and the bias of a linear layer with eight features."""
    weight, bias = torch.randn(8, depth, dtype=dtype), torch.randn(8, dtype=dtype)
    return weight.requires_grad_(), bias.requires_grad_() if own_bias else None


def rows(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def assert_linear_is_its_parts(quantizers, extra=(None, None, None), x=None, parts=None, **kwargs):
    x = rows(40, 5) if x is None else x
    parts = layer(x.size(-1), x.dtype) if parts is None else parts
    source = products.in_our_order if any(quantizers) else F.linear
    with pytest.MonkeyPatch.context() as patch:
        products.always(patch)
        assert_chain_is_its_parts(quantizers, extra, x=x, fast=linear, source=source, more=parts, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("depth", [1, 3, 16, 17, 200])
def test_linear_is_torchs_but_for_the_order_of_sums(dtype, depth):
    for count in (0, 1, 2, 7, 100):
        x, (weight, bias) = rows(count, depth, dtype=dtype), layer(depth, dtype)
        for offset in (bias, None):
            results = []
            for run in (linear, F.linear):
                given = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, offset)]
                y = run(*given)
                y.float().square().sum().backward()
                results.append([y, *(t.grad for t in given if t is not None)])
            for one, two in zip(*results, strict=True):
                largest = two.abs().max().item() if two.numel() else 0
                eps = torch.finfo(dtype).eps
                torch.testing.assert_close(one, two, rtol=0, atol=20 * eps * (1 + largest))


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("extra", ["nothing", "bias", "other", "scaled"])
def test_a_linear_layer_and_its_chain_are_their_parts(kind, extra):
    for there in itertools.product([True, False], repeat=3):
        quantizers = [quantizer(kind) if yes else None for yes in there]
        twins = copy.deepcopy(quantizers)
        for step, protected in enumerate((None, torch.rand(40) < 0.3, torch.ones(40) > 0)):
            x = ((1 + step) * torch.randn(40, 5)).requires_grad_()
            parts = layer(own_bias=there[1])
            more = {"relu": there[0], "protected": protected, "twins": twins}
            assert_linear_is_its_parts(quantizers, added(extra), x=x, parts=parts, **more)


@pytest.mark.parametrize("change", ["observer off", "rounding off", "frozen", "eval", "calibrating", "other kind"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_linear_layer_before_a_quantizer_that_is_not_as_the_others(which, change):
    quantizers = [quantizer() for _ in range(3)]
    protected = torch.rand(40) < 0.4
    assert_linear_is_its_parts(quantizers, added("bias"), protected=protected)
    if change == "observer off":
        disable_observer(quantizers[which])
    elif change == "rounding off":
        disable_fake_quant(quantizers[which])
    elif change == "frozen":
        quantizers[which].eval()
    elif change == "other kind":
        quantizers[which] = quantizer("sampled")
    else:
        for one in quantizers:
            one.eval()
            one.calibrating = change == "calibrating"
    twins = copy.deepcopy(quantizers)
    for factor in (1, 3):
        x = (factor * torch.randn(40, 5)).requires_grad_()
        assert_linear_is_its_parts(quantizers, added("bias"), x=x, protected=protected, twins=twins)


@pytest.mark.parametrize("frozen", list(itertools.product([True, False], repeat=3)), ids=str)
@pytest.mark.parametrize("extra", ["bias", "scaled"])
def test_a_linear_layer_of_which_not_everything_is_trained(frozen, extra):
    """The input of a first layer needs no gradient, nor does a weight that was frozen."""
    x, (weight, bias) = rows(40, 5), layer()
    for tensor, still in zip((x, weight, bias), frozen, strict=True):
        tensor.requires_grad_(not still)
    quantizers = [quantizer("int8-dq") for _ in range(3)]
    assert_linear_is_its_parts(quantizers, added(extra), x=x, parts=(weight, bias), protected=torch.rand(40) < 0.2)


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (0, 3, 5), (1, 3, 5), (40, 3, 5), (40, 0, 5), (4, 3, 2, 5)], ids=str)
def test_linear_layers_of_few_rows_and_of_more_dimensions(shape):
    for kind, own in itertools.product(("int8-dq", "int8-qat"), (True, False)):
        quantizers = [quantizer(kind) for _ in range(3)]
        twins = copy.deepcopy(quantizers)
        bias, other = torch.randn(8), torch.randn(*shape[:-1], 8)
        for step, protected in enumerate((None, torch.rand(shape[0]) < 0.5)):
            x = ((1 + step) * torch.randn(shape)).requires_grad_()
            extra = (bias, None, None) if own else (None, other, torch.tensor(0.3))
            assert_linear_is_its_parts(quantizers, extra, x=x, protected=protected, twins=twins)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("extra", ["bias", "other", "scaled"])
def test_linear_layers_of_other_types(extra, dtype):
    quantizers = [quantizer("int8-dq") for _ in range(3)]
    twins = copy.deepcopy(quantizers)
    for protected in (None, torch.rand(40) < 0.3):
        x = rows(40, 5, dtype=dtype)
        assert_linear_is_its_parts(quantizers, added(extra, dtype), x=x, protected=protected, twins=twins)
        assert_linear_is_its_parts(quantizers, added(extra), x=x, protected=protected, twins=twins)


def test_a_linear_layer_and_its_chain_follow_autocast():
    quantizers = [quantizer("int8-dq") for _ in range(3)]
    twins = copy.deepcopy(quantizers)
    for extra in ("nothing", "bias", "other"):
        with torch.autocast("cpu", torch.bfloat16):
            assert_linear_is_its_parts(quantizers, added(extra), twins=twins)


def test_a_linear_layer_that_never_observed_is_an_error_in_evaluation():
    one = quantizer().eval()
    with pytest.raises(ObserverError, match="never observed a value"):
        linear(rows(4, 5), *layer(), FusedChain(second=one), None)


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", ["int8-dq", "int4"])
@pytest.mark.parametrize("width", [16, 64, 500], ids=lambda width: f"{width} features")
def test_codes_differ_from_those_of_torchs_product_by_rounding_ties_only(kind, width):
    """500 features: a weight too large for the loops, whose product is torch's own."""
    x, weight, bias = torch.randn(20_000, width), torch.randn(width, width), torch.randn(width)
    fast, plain = quantizer(kind), quantizer(kind)
    for factor in (1, 1.5):
        got = linear(factor * x, weight, bias, FusedChain(second=fast))
        want = plain(F.linear(factor * x, weight, bias))
        torch.testing.assert_close(fast.max_val, plain.max_val, rtol=1e-6, atol=0)
        torch.testing.assert_close(fast.min_val, plain.min_val, rtol=1e-6, atol=0)
        step = (plain.max_val - plain.min_val).item() / (15 if kind == "int4" else 255)
        steps = ((got - want) / step).round().abs()
        assert steps.max() <= 1
        assert (steps > 0).float().mean() <= 1e-3


# -- message passing -----------------------------------------------------------------------------------------------


def gather_and_add(x, weight, sender, receiver, num_nodes, quantize, protected, mean):
    message = x[sender]
    if weight is not None:
        message = weight.unsqueeze(-1) * message
    message = quantize(message, None if protected is None else protected[sender])
    total = torch.zeros(num_nodes, *message.shape[1:], dtype=message.dtype).index_add(0, receiver, message)
    if mean:
        count = torch.bincount(receiver, minlength=num_nodes).clamp(min=1)
        total = total / count.view(-1, *[1] * (total.dim() - 1))
    return total


def how(mean):
    return "mean" if mean else "sum"


@pytest.mark.sample(5)
@pytest.mark.parametrize("change", ["nothing", "observer off", "rounding off", "eval", "no orders", "calibrating"])
@pytest.mark.parametrize("kind", ["int8-dq", "int4", "int8-qat", "sampled"])
@pytest.mark.parametrize("weighted", ["x_j", "w x_j", "heads"])
def test_message_passing_is_gather_quantize_and_add(weighted, kind, change):
    sender, receiver = torch.randint(20, (60,)), torch.randint(15, (60,))
    weight = {"x_j": None, "w x_j": torch.rand(60), "heads": torch.rand(60, 2)}[weighted]
    shape = (20, 2, 4) if weighted == "heads" else (20, 8)
    fast = quantizer(kind)
    fast(torch.randn(40, 8))
    if change == "observer off":
        disable_observer(fast)
    elif change == "rounding off":
        disable_fake_quant(fast)
    elif change in ("eval", "calibrating"):
        fast.eval()
        fast.calibrating = change == "calibrating"
    plain = copy.deepcopy(fast)
    orders = edge_order(receiver, sender, 15), edge_order(sender, receiver, 20)
    if change == "no orders":
        orders = None, None
    for mean, protected in itertools.product((False, True), (None, torch.rand(20) < 0.4)):
        x = 2 * torch.randn(shape)
        results = []
        for quantize in (fast, plain):
            torch.manual_seed(0)
            given = x.clone().requires_grad_()
            factor = None if weight is None else weight.clone().requires_grad_()
            if quantize is fast:
                y = message_passing(given, factor, sender, receiver, 15, *orders, quantize, protected, how(mean))
            else:
                y = gather_and_add(given, factor, sender, receiver, 15, quantize, protected, mean)
            y.square().sum().backward()
            results.append([y.detach(), given.grad] + ([] if factor is None else [factor.grad]))
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)
        assert ranges(fast) == ranges(plain)


@pytest.mark.parametrize("low", ["x", "weight"])
def test_mixed_types_of_messages(low):
    """Attention coefficients are float32 under autocast."""
    x, weight = torch.randn(20, 8), torch.rand(60)
    x, weight = (x.bfloat16(), weight) if low == "x" else (x, weight.bfloat16())
    sender, receiver = torch.randint(20, (2, 60))
    orders = edge_order(receiver, sender, 20), edge_order(sender, receiver, 20)
    one, two = quantizer("int8-dq"), quantizer("int8-dq")
    got = message_passing(x, weight, sender, receiver, 20, *orders, one, None, "sum")
    want = gather_and_add(x, weight, sender, receiver, 20, two, None, False)
    assert got.dtype == want.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", ["int8-dq", "int4", "int8-qat", "sampled"])
@pytest.mark.parametrize("extra", ["nothing", "bias", "other", "scaled"])
@pytest.mark.parametrize("weighted", ["x_j", "w x_j", "heads"])
def test_message_passing_and_its_chain_are_their_parts(weighted, extra, kind):
    """With nodes that nobody sends to: the last five."""
    sender, receiver = torch.randint(20, (60,)), torch.randint(35, (60,))
    weight = {"x_j": None, "w x_j": torch.rand(60), "heads": torch.rand(60, 2)}[weighted]
    shape = (20, 2, 4) if weighted == "heads" else (20, 8)
    bias, other, alpha = added(extra)
    if weighted == "heads":
        bias, other = bias if bias is None else bias[:4], other if other is None else other.view(40, 2, 4)
    orders = edge_order(receiver, sender, 40), edge_order(sender, receiver, 20)
    for there, mean in itertools.product(itertools.product([True, False], repeat=3), (False, True)):
        fast, quantizers = quantizer(kind), [quantizer(kind) if yes else None for yes in there]
        plain, twins = copy.deepcopy(fast), copy.deepcopy(quantizers)
        for step, protected in enumerate((None, torch.rand(40) < 0.4)):
            x = ((1 + step) * torch.randn(shape)).requires_grad_()
            factor = None if weight is None else weight.requires_grad_()
            senders = None if protected is None else torch.rand(20) < 0.4

            def fused(x, factor, steps, protected, quantize=fast, senders=senders, mean=mean):
                ends = (sender, receiver, 40, *orders)
                return message_passing(x, factor, *ends, quantize, senders, how(mean), steps=steps, protected=protected)

            def alone(x, factor, quantize=plain, senders=senders, mean=mean):
                return message_passing(x, factor, sender, receiver, 40, *orders, quantize, senders, how(mean))

            assert_chain_is_its_parts(
                quantizers,
                (bias, other, alpha),
                relu=there[0],
                x=x,
                protected=protected,
                twins=twins,
                fast=fused,
                source=alone,
                more=(factor,),
            )
            assert ranges(fast) == ranges(plain)


@pytest.mark.parametrize("change", ["observer off", "rounding off", "frozen", "messages off", "messages eval"])
def test_message_passing_before_a_quantizer_that_is_not_as_the_others(change):
    sender, receiver = torch.randint(20, (2, 60))
    orders = edge_order(receiver, sender, 20), edge_order(sender, receiver, 20)
    fast, quantizers = quantizer(), [quantizer() for _ in range(3)]
    protected = torch.rand(20) < 0.4

    def fused(x, steps, protected):
        return message_passing(
            x, None, sender, receiver, 20, *orders, fast, protected, "sum", steps=steps, protected=protected
        )

    fused(
        torch.randn(20, 8),
        FusedChain(quantizers[0], torch.randn(8), None, None, *quantizers[1:2], True, quantizers[2]),
        None,
    )
    changed = {"messages off": fast, "messages eval": fast}.get(change, quantizers[1])
    switch = {"observer off": disable_observer, "rounding off": disable_fake_quant, "messages off": disable_observer}
    switch.get(change, nn.Module.eval)(changed)
    plain, twins = copy.deepcopy(fast), copy.deepcopy(quantizers)

    def alone(x):
        return message_passing(x, None, sender, receiver, 20, *orders, plain, protected, "sum")

    for factor in (1, 3):
        x, bias = (factor * torch.randn(20, 8)).requires_grad_(), torch.randn(8)
        assert_chain_is_its_parts(
            quantizers, (bias, None, None), x=x, protected=protected, twins=twins, fast=fused, source=alone
        )
        assert ranges(fast) == ranges(plain)


@pytest.mark.parametrize("nodes", [0, 1, 5])
@pytest.mark.parametrize("edges", [0, 1, 3])
@pytest.mark.parametrize("kind", ["int8-dq", "int4", "int8-qat"])
def test_small_and_empty_graphs(nodes, edges, kind):
    """No nodes at all, one with loops, and nodes without an edge."""
    edges = edges if nodes else 0
    sender, receiver = torch.randint(max(nodes, 1), (2, edges))
    orders = edge_order(receiver, sender, nodes), edge_order(sender, receiver, nodes)
    fast, quantizers = quantizer(kind), [quantizer(kind) for _ in range(3)]
    plain, twins = copy.deepcopy(fast), copy.deepcopy(quantizers)
    weight = torch.rand(edges).requires_grad_()

    def fused(x, weight, steps, protected):
        return message_passing(
            x, weight, sender, receiver, nodes, *orders, fast, protected, "mean", steps=steps, protected=protected
        )

    for step, protected in enumerate((None, torch.rand(nodes) < 0.5, torch.ones(nodes) > 0)):

        def alone(x, weight, protected=protected):
            return gather_and_add(x, weight, sender, receiver, nodes, plain, protected, True)

        assert_chain_is_its_parts(
            quantizers,
            (torch.randn(8), None, None),
            x=((1 + step) * torch.randn(nodes, 8)).requires_grad_(),
            protected=protected,
            twins=twins,
            fast=fused,
            source=alone,
            more=(weight,),
        )
        assert ranges(fast) == ranges(plain)


# -- stand-ins -----------------------------------------------------------------------------------------------------


def test_linear_follows_autocast():
    x, weight = torch.randn(5, 3), torch.randn(2, 3)
    assert linear(x, weight).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
        assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(("p", "training"), [(0.5, True), (0.5, False), (0.0, True), (1.0, True)])
def test_dropout_is_torchs(p, training):
    x = torch.randn(30, 4)
    torch.manual_seed(1)
    got = dropout(x, p, training)
    torch.manual_seed(1)
    assert torch.equal(got, F.dropout(x, p, training))


# -- what is remembered --------------------------------------------------------------------------------------------


class Counting:
    """Counts how often a function is called."""

    def __init__(self, function):
        self.function, self.count, self.__name__ = function, 0, function.__name__

    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.function(*args, **kwargs)


def test_a_function_of_the_graph_is_called_once_for_a_graph():
    function = Counting(gcn_norm)
    remembered, edge_index = Remembered(function), torch.randint(9, (2, 30))
    for _ in range(3):
        got = remembered(edge_index.clone(), None, 9, dtype=torch.float32)
        torch.testing.assert_close(got, gcn_norm(edge_index, None, 9), rtol=0, atol=0)
    assert function.count == 1


def test_a_graph_changed_in_place_is_another():
    function = Counting(gcn_norm)
    remembered, edge_index = Remembered(function), torch.randint(9, (2, 30))
    remembered(edge_index, None, 9)
    edge_index[0, 3] = (edge_index[0, 3] + 1) % 9
    torch.testing.assert_close(remembered(edge_index, None, 9), gcn_norm(edge_index, None, 9), rtol=0, atol=0)
    assert function.count == 2


def test_other_arguments_are_another_call():
    function = Counting(gcn_norm)
    remembered, edge_index = Remembered(function), torch.randint(9, (2, 30))
    calls = [((edge_index, None, 9), {}), ((edge_index, None, 10), {}), ((edge_index, None, 10, True), {})]
    calls += [((edge_index, None, 10, True, False), {}), ((edge_index,), {"dtype": torch.float64})]
    calls += [((edge_index.int(), None, 9), {}), ((edge_index[:, :-1], None, 9), {})]
    for number, (args, kwargs) in enumerate(calls, start=1):
        got, want = remembered(*args, **kwargs), gcn_norm(*args, **kwargs)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert function.count == number


def test_a_result_that_was_changed_in_place_is_made_again():
    remembered, edge_index = Remembered(gcn_norm), torch.randint(9, (2, 30))
    want = gcn_norm(edge_index, None, 9)[1]
    remembered(edge_index, None, 9)[1].mul_(5)
    assert torch.equal(remembered(edge_index, None, 9)[1], want)


def test_what_depends_on_weights_is_not_remembered():
    function = Counting(gcn_norm)
    remembered, edge_index = Remembered(function), torch.randint(9, (2, 30))
    weight = torch.rand(30, requires_grad=True)
    for _ in range(2):
        remembered(edge_index, weight, 9)[1].sum().backward()
    assert function.count == 2


@pytest.mark.parametrize("changed", ["nothing", "index", "other", "nodes"])
def test_orders_are_made_again_when_anything_changed(changed):
    orders, index, other, nodes = EdgeOrders(), torch.randint(9, (30,)), torch.randint(9, (30,)), 9
    first = orders(index, other, nodes)
    if changed == "index":
        index[4] = (index[4] + 1) % 9
    elif changed == "other":
        other[4] = (other[4] + 1) % 9
    elif changed == "nodes":
        nodes = 12
    again = orders(index.clone(), other.clone(), nodes)
    assert (again is first) == (changed == "nothing")
    for one, two in zip(again, edge_order(index, other, nodes), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("module", [EdgeOrders(), Remembered(gcn_norm)], ids=["orders", "function"])
def test_what_is_remembered_is_neither_saved_nor_copied(module):
    index = torch.randint(9, (2, 30))
    module(index[0], index[1], 9) if isinstance(module, EdgeOrders) else module(index, None, 9)
    assert len(module.memory) == 1
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert len(twin.memory) == 0
    assert module.state_dict() == {}
    assert isinstance(module, nn.Module)


def test_inference_mode_leaves_nothing_that_training_could_not_use():
    orders, remembered, index = EdgeOrders(), Remembered(gcn_norm), torch.randint(9, (2, 30))
    with torch.inference_mode():
        for _ in range(2):
            orders(index[0], index[1], 9)
            remembered(index, None, 9)
    assert not orders(index[0], index[1], 9).edges.is_inference()
    assert not any(t.is_inference() for t in remembered(index, None, 9))
