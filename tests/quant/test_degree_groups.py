"""Ranges per group of in-degrees: which rows are in which group, and what a quantizer does with them."""

from __future__ import annotations

import math

import pytest
import torch

from dqconvert.errors import ConfigError, InputShapeError, ObserverError
from dqconvert.kernels import degree_groups, nearest_seen
from dqconvert.qconfig import QConfig, QSpec, Rule, as_qconfig
from dqconvert.quant import FakeQuantize, groups_of_edges, groups_of_nodes
from dqconvert.quant.observers import observer_for

RANGES = {"minmax": {}, "ema": {}, "percentile": {"percentile": 0.1}, "mse": {}, "relative": {}}


def quantizer(**fields):
    fields = {"granularity": "degree", "groups": 4, **fields}
    return FakeQuantize(QSpec(**fields), name="conv.quant.input", signed=True, row_dim=fields.pop("row_dim", 0))


def rows(groups):
    return torch.tensor(groups, dtype=torch.uint8)


@pytest.mark.parametrize("groups", [2, 8, 32])
def test_a_group_is_the_logarithm_of_the_in_degree(groups):
    degrees = [0, 1, 2, 3, 4, 7, 8, 2**20 - 1, 2**20]
    wanted = [min(math.floor(math.log2(max(degree, 1))), groups - 1) for degree in degrees]
    assert degree_groups(torch.tensor(degrees), groups).tolist() == wanted


def test_groups_of_nodes_sum_over_edge_types_and_those_of_edges_are_their_receivers():
    groups = groups_of_nodes(3, 8, torch.tensor([0, 0, 0, 2]), torch.tensor([0]))
    assert groups.tolist() == [2, 0, 0]
    assert groups_of_edges(groups, torch.tensor([0, 2])).tolist() == [2, 0]
    assert groups_of_nodes(0, 8, torch.empty(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(("seen", "wanted"), [([1], [1, 1, 1, 1]), ([0, 3], [0, 0, 3, 3]), ([0, 2], [0, 0, 2, 2])])
def test_a_group_that_was_never_seen_has_the_range_of_the_nearest(seen, wanted):
    lo, hi = torch.full((4,), math.inf), torch.full((4,), -math.inf)
    lo[seen], hi[seen] = -torch.tensor(seen, dtype=torch.float32) - 1, torch.ones(len(seen))
    assert nearest_seen(lo, hi)[0].tolist() == [-group - 1 for group in wanted]


@pytest.mark.parametrize("range_", RANGES)
@pytest.mark.parametrize("row_dim", [0, 1])
def test_each_group_is_observed_and_rounded_as_its_rows_alone(range_, row_dim):
    torch.manual_seed(0)
    x, groups, protected = torch.randn(2, 40, 3), torch.randint(0, 3, (40,)).to(torch.uint8), torch.rand(40) < 0.3
    x = x * (1 + groups[:, None])
    x = x.movedim(1, row_dim).contiguous()
    spec = QSpec(bits=4, granularity="degree", groups=4, range=range_, grad="clip", **RANGES[range_])
    module = FakeQuantize(spec, name="m", signed=True, row_dim=row_dim)
    given = x.clone().requires_grad_()
    y = module(given, protected, groups)
    y.sum().backward()
    for group in range(3):
        own = groups == group
        index = own.nonzero().view(-1)
        alone = FakeQuantize(
            QSpec(bits=4, range=range_, grad="clip", **RANGES[range_]), name="m", signed=True, row_dim=row_dim
        )
        part = x.index_select(row_dim, index).requires_grad_()
        want = alone(part, protected[own])
        want.sum().backward()
        assert torch.equal(y.index_select(row_dim, index), want)
        assert torch.equal(given.grad.index_select(row_dim, index), part.grad)
        assert (module.min_val[group], module.max_val[group]) == (alone.min_val, alone.max_val)
    assert module.min_val[3] == math.inf
    assert module.scale[3] == module.scale[2]  # never seen: as the nearest
    everything = module.eval()(x, protected, groups)
    assert not torch.equal(everything, x)


def test_observers_leave_groups_without_rows_as_they_were():
    observer, old = observer_for(QSpec(range="ema")), (torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]))
    lo, hi = observer.update_groups(old, torch.tensor([5.0, 7.0]), None, 0, rows([1, 1]))
    assert (lo[0], hi[0]) == (-1, 1)
    assert hi[1] > 2


def test_a_quantizer_says_what_it_lacks():
    module, x = quantizer(), torch.ones(3, 2)
    with pytest.raises(InputShapeError, match=r"takes the group of each row: got none for 3 rows"):
        module(x)
    with pytest.raises(InputShapeError, match=r"got \(2,\) for 3 rows"):
        module(x, None, rows([0, 0]))
    with pytest.raises(ObserverError, match="never observed"):
        module.eval()(x, None, rows([0, 1, 2]))
    assert "per in-degree group (4), minmax, range=never observed" in repr(module)
    module.train()(x, None, rows([0, 1, 2]))
    assert "range=4 groups" in repr(module)


def test_half_precision_keeps_ranges_in_float32():
    module = quantizer()
    y = module.bfloat16()(torch.randn(3, 2).bfloat16(), None, rows([0, 1, 3]))
    assert y.dtype == torch.bfloat16
    assert module.min_val.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QSpec(groups=4), "groups=4: needs granularity='degree'"),
        (lambda: QSpec(granularity="degree", groups=1), "groups=1: must be an integer from 2 to 32, or None"),
        (lambda: QConfig(weight=QSpec(granularity="degree")), "weight.granularity='degree': a weight has no nodes"),
        (lambda: Rule(role="weight", spec=QSpec(granularity="degree")), "a weight has no nodes"),
    ],
)
def test_configs_that_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_configs_go_to_files_and_back(tmp_path):
    spec = QSpec(bits=4, granularity="degree", groups=5)
    config = QConfig(activation=spec, message=QSpec(granularity="degree"))
    assert (spec.groups_value, config.message.groups_value, QSpec().groups_value) == (5, 8, None)
    for suffix, text in ((".toml", config.to_toml()), (".json", config.to_json())):
        path = tmp_path / f"config{suffix}"
        path.write_text(text)
        assert as_qconfig(path) == config
