"""`FakeQuantize`: when it observes, what it rounds, and that its state survives what modules go through."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import dqconvert.quant.observed_grid as module_under_test
from dqconvert.errors import ConfigError, ObserverError
from dqconvert.kernels import fake_quantize, qparams
from dqconvert.qconfig import QSpec
from dqconvert.quant import (
    FakeQuantize,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)


def quantizer(*, signed: bool = True, channels: int | None = None, row_dim: int = 0, channel_dim: int = 0, **spec):
    return FakeQuantize(
        QSpec(**spec),
        name="conv1.quant.message",
        signed=signed,
        channels=channels,
        channel_dim=channel_dim,
        row_dim=row_dim,
    )


def range_of(module: FakeQuantize) -> tuple[list, list]:
    return module.min_val.tolist(), module.max_val.tolist()


NEVER = (math.inf, -math.inf)


@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel"]),
    grad=st.sampled_from(["ste", "clip"]),
    share=st.sampled_from([None, 0.0, 0.4, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_training_step_is_observe_then_round(bits, signed, symmetric, granularity, grad, share, seed):
    torch.manual_seed(seed)
    module = quantizer(
        bits=bits,
        signed=signed,
        symmetric=symmetric,
        granularity=granularity,
        grad=grad,
        channels=4,
        channel_dim=1,
    )
    x = torch.randn(9, 4)
    protected = None if share is None else torch.rand(9) < share
    y = module(x, protected)

    seen = x if protected is None else x[~protected]
    dim = 0 if granularity == "channel" else None
    if seen.numel() > 0:
        lo, hi = (seen.amin(dim), seen.amax(dim)) if dim is not None else (seen.amin(), seen.amax())
        assert range_of(module) == (lo.tolist(), hi.tolist())
    quant_min, quant_max = module.spec.quant_range(signed)
    grid = qparams(module.min_val, module.max_val, quant_min, quant_max, symmetric)
    assert torch.equal(module.scale, grid[0])
    assert torch.equal(module.zero_point, grid[1])
    channel_dim = None if dim is None else 1
    want = fake_quantize(x, *grid, quant_min, quant_max, protected, channel_dim=channel_dim, grad=grad)
    assert torch.equal(y, want)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"signed": "graph"},
        {"range": "learned"},
        {"range": "learned", "signed": "graph"},
        {"granularity": "degree", "groups": 3},
        {"granularity": "degree", "groups": 3, "signed": "graph", "range": "learned"},
    ],
    ids=str,
)
def test_a_range_that_is_written_past_torch_s_count_is_in_force(spec):
    """Through ``.data``, as averages of weights do it, and numpy: no version says so, and much is derived of ranges."""
    made = FakeQuantize(QSpec(bits=4, **spec), name="conv1.quant.message", signed="signed" not in spec)
    x, groups = torch.linspace(-2, 3, 40).view(20, 2), torch.arange(20).remainder(2).to(torch.uint8)
    args = (x, None, groups if made.grouped else None)
    made(*args)
    wide = made.eval()(*args)
    made.min_val.data.mul_(0.5)
    made.max_val.numpy()[...] *= 0.5
    for _ in range(2):
        narrow = made(*args)
        assert not torch.equal(narrow, wide)
        assert torch.equal(narrow, copy.deepcopy(made)(*args))


def test_evaluation_neither_observes_nor_protects():
    module = quantizer(bits=4)
    module(torch.randn(10, 2))
    before = range_of(module)
    module.eval()
    x = 100 * torch.randn(10, 2)
    everything = torch.ones(10, dtype=torch.bool)
    assert torch.equal(module(x, everything), module(x))
    assert not torch.equal(module(x), x)
    assert range_of(module) == before


def test_calibrating_observes_all_rows_in_evaluation():
    module = quantizer().eval()
    module.calibrating = True
    x = torch.tensor([[-1.0], [2.0]])
    y = module(x, torch.tensor([False, True]))
    assert range_of(module) == (-1.0, 2.0)
    module.calibrating = False
    assert torch.equal(module(x), y)


@pytest.mark.parametrize("row_dim", [0, 1, -1])
def test_rows_may_be_any_dimension(row_dim):
    module = quantizer(row_dim=row_dim)
    x = torch.arange(12.0).reshape(3, 4)
    protected = torch.zeros(x.size(row_dim), dtype=torch.bool)
    protected[-1] = True
    y = module(x, protected)
    assert torch.equal(y.select(row_dim, -1), x.select(row_dim, -1))
    assert module.max_val == (7.0 if row_dim == 0 else 10.0)


def test_an_empty_value_passes_even_where_nothing_was_observed():
    module = quantizer()
    for mode in (True, False):
        assert module.train(mode)(torch.empty(0, 4)).shape == (0, 4)
    assert range_of(module) == NEVER


class TestNeverObserved:
    MESSAGE = (
        r"quantizer 'conv1\.quant\.message' never observed a value.*"
        r"Train one step first .*, or run dqconvert\.calibrate"
    )

    def assert_never_observed(self, module: FakeQuantize) -> None:
        with pytest.raises(ObserverError, match=self.MESSAGE):
            module(torch.randn(3))

    def test_is_an_error_in_evaluation(self):
        self.assert_never_observed(quantizer().eval())
        self.assert_never_observed(quantizer(granularity="channel", channels=3).eval())

    def test_is_an_error_in_training_without_observer(self):
        module = quantizer()
        disable_observer(module)
        self.assert_never_observed(module)

    def test_holds_after_a_step_in_which_all_rows_were_protected(self):
        module, x = quantizer(), torch.randn(3)
        assert torch.equal(module(x, torch.ones(3, dtype=torch.bool)), x)
        self.assert_never_observed(module.eval())
        module.train()(x, torch.tensor([True, False, True]))
        module.eval()(x)

    def test_holds_after_only_nan(self):
        module = quantizer()
        assert module(torch.full((3,), math.nan)).isnan().all()
        self.assert_never_observed(module.eval())

    def test_is_forgotten_and_known_again_with_the_state(self):
        trained, x = quantizer(), torch.randn(3)
        trained(x)
        trained.eval()
        fresh = quantizer().eval()
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(fresh(x), trained(x))
        fresh.load_state_dict(quantizer().state_dict())
        self.assert_never_observed(fresh)
        trained.reset()
        assert range_of(trained) == NEVER
        self.assert_never_observed(trained)

    def test_without_rounding_is_no_error(self):
        module, x = quantizer().eval(), torch.randn(3)
        disable_fake_quant(module)
        assert module(x) is x


@pytest.mark.parametrize("prepare", ["train then eval", "load", "copy", "pickle", "move"])
def test_evaluation_does_not_look_at_the_range_again(prepare, monkeypatch):
    """A look would wait for an accelerator: it happens in `eval()` and `load_state_dict`, not in forward."""
    module = quantizer()
    module(torch.randn(5), torch.tensor([True, False, False, False, False]))
    module.eval()
    if prepare == "load":
        loaded = quantizer().eval()
        loaded.load_state_dict(module.state_dict())
        module = loaded
    elif prepare == "copy":
        module = copy.deepcopy(module)
    elif prepare == "pickle":
        module = pickle.loads(pickle.dumps(module))
    elif prepare == "move":
        module = module.to("cpu", torch.float64)

    def look(pair):
        raise AssertionError("looked at the range")

    monkeypatch.setattr(module_under_test, "is_empty", look)
    module(torch.randn(5))


def test_switches_apply_to_quantizers_only():
    model = nn.Sequential(nn.Linear(2, 2), quantizer())
    x = torch.randn(4, 2)
    model(x)
    before = range_of(model[1])

    model.apply(disable_observer)
    model(10 * x)
    assert range_of(model[1]) == before
    model.apply(enable_observer)
    model(10 * x)
    assert range_of(model[1]) != before

    model.apply(disable_fake_quant)
    before = range_of(model[1])
    assert torch.equal(model(100 * x), model[0](100 * x))
    assert range_of(model[1]) != before, "disabling fake_quant leaves observers on"
    model.apply(enable_fake_quant)
    assert not torch.equal(model(x), model[0](x))
    assert not hasattr(model[0], "observer_enabled")


@pytest.mark.parametrize("spec", [{}, {"granularity": "channel", "channels": 5}])
@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "float"])
def test_casts_leave_the_range_in_float32(cast, spec):
    module = quantizer(**spec)
    module(torch.randn(5, 7))
    before = range_of(module)
    getattr(module, cast)()
    module.to(torch.bfloat16)
    assert module.min_val.dtype == module.max_val.dtype == torch.float32
    assert range_of(module) == before
    y = module.eval()(torch.randn(5, 7, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16


def test_default_dtype_does_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        module = quantizer()
        y = module(torch.randn(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert module.min_val.dtype == torch.float32
    assert y.dtype == torch.float64


def test_moves_and_shares():
    module = quantizer()
    module(torch.randn(3))
    module.share_memory()
    assert module.min_val.is_shared()
    assert module.max_val.is_shared()
    assert module.to("meta").min_val.is_meta
    assert "never observed" in repr(module)


def test_state_is_saved_and_loaded_strictly():
    trained = quantizer(range="percentile")
    trained(torch.randn(100))
    buffer = io.BytesIO()
    torch.save(trained.state_dict(), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    assert list(state) == ["min_val", "max_val"]

    fresh = quantizer(range="percentile")
    fresh.load_state_dict(state, strict=True)
    assert range_of(fresh) == range_of(trained)
    with pytest.raises(RuntimeError, match=r"Missing key.*max_val"):
        fresh.load_state_dict({"min_val": state["min_val"]})
    with pytest.raises(RuntimeError, match="size mismatch for min_val"):
        quantizer(granularity="channel", channels=2).load_state_dict(state)
    half = {name: value.bfloat16() for name, value in state.items()}
    fresh.load_state_dict(half, assign=True)
    assert fresh.min_val.dtype == torch.float32


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_go_their_own_way(copied):
    module = quantizer(range="ema", momentum=0.5)
    module(torch.randn(5))
    twin = copied(module)
    before = range_of(module)
    assert range_of(twin) == before
    x = 50 * torch.randn(5)
    twin(x)
    assert range_of(module) == before
    module(x)
    assert range_of(twin) == range_of(module)


def test_gradients_reach_the_value_and_not_the_range():
    module = quantizer(grad="clip", bits=4)
    x = torch.randn(50, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.unique().tolist() == [0.0, 1.0]
    assert not module.min_val.requires_grad


def test_one_quantizer_may_serve_twice_in_a_step():
    module = quantizer(grad="clip", bits=4)
    x = torch.randn(50, requires_grad=True)
    (module(x) + module(3 * x)).sum().backward()
    assert module.max_val == 3 * x.max()


def test_a_range_survives_an_overflow():
    module, x = quantizer(range="ema"), torch.randn(50)
    module(x)
    before = range_of(module)
    assert module(torch.tensor([math.nan, math.inf, -math.inf]))[0].isnan()
    assert range_of(module) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", ["ste", "clip"])
def test_autocast_changes_nothing(dtype, grad):
    x = torch.randn(40, 3).to(dtype)
    plain, cast = quantizer(range="percentile", grad=grad), quantizer(range="percentile", grad=grad)
    with torch.autocast("cpu", torch.bfloat16):
        y = cast(x)
    assert torch.equal(y, plain(x))
    assert y.dtype == dtype
    assert range_of(cast) == range_of(plain)


def test_errors_and_printout():
    with pytest.raises(ConfigError, match=r"quantizer 'conv1\.quant\.message': granularity='channel' needs"):
        quantizer(granularity="channel")
    with pytest.raises(ValueError, match="one entry per row"):
        quantizer()(torch.randn(3), torch.ones(4, dtype=torch.bool))
    assert repr(quantizer(bits=4, range="percentile")) == (
        "FakeQuantize(conv1.quant.message, bits=4, signed=True, affine, per tensor, percentile(0.01), "
        "range=never observed)"
    )
    module = quantizer(symmetric=True, signed=False)
    module(torch.tensor([0.0, 1.5]))
    assert "signed=False, symmetric, per tensor, minmax, range=[0, 1.5]" in repr(module)
    module = quantizer(granularity="channel", channels=2)
    module(torch.randn(2, 3))
    assert "per channel, minmax, range=2 channels" in repr(module)


@pytest.mark.parametrize("spec", [{"range": "percentile", "grad": "clip"}, {"range": "ema", "grad": "ste"}], ids=str)
def test_compiled_as_one_graph_it_is_the_same(spec):
    torch._dynamo.reset()
    eager, compiled = quantizer(**spec), quantizer(**spec)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (30, 41):
        x, protected = torch.randn(rows, 4), torch.rand(rows) < 0.3
        got, want = x.clone().requires_grad_(), x.clone().requires_grad_()
        run(got, protected).square().sum().backward()
        eager(want, protected).square().sum().backward()
        torch.testing.assert_close(got.grad, want.grad)
        assert range_of(compiled) == range_of(eager)
    eager.eval()
    compiled.eval()
    x = torch.randn(17, 4)
    assert torch.equal(run(x), eager(x))


def test_exported_it_is_the_same():
    module = quantizer()
    module(torch.randn(30, 4))
    module.eval()
    program = torch.export.export(module, (torch.randn(8, 4),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    x = torch.randn(13, 4)
    assert torch.equal(program.module()(x), module(x))


@pytest.mark.parametrize("spec", [{"range": "percentile", "grad": "clip"}, {"range": "ema", "grad": "ste"}], ids=str)
def test_a_training_step_reads_nothing_back_from_the_device(spec):
    """Fake tensors hold no values: whatever looked at one would raise here."""
    with FakeTensorMode():
        x = torch.randn(30, 4, requires_grad=True)
        quantizer(**spec)(x, torch.rand(30) < 0.3).sum().backward()
        assert x.grad.shape == x.shape
