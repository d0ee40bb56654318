"""finetune: what it minimizes, what it selects, what it takes, and how it goes on after an interruption."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GIN, global_mean_pool

import dqconvert
from dqconvert import QConfig
from dqconvert.demo import make_graph
from dqconvert.qconfig import KINDS

TWO_BITS = {kind: {"bits": 2, "range": "mse", "percentile": None} for kind in KINDS}
FLOAT_POOLED = QConfig(weight=dqconvert.QSpec())
FLOAT = QConfig(weight=dqconvert.QSpec(), rules=[dqconvert.Rule(module="convs.0.lin", role="weight", spec=None)])


@pytest.fixture(scope="module")
def trained():
    """A float GCN, trained on a generated graph, and the graph."""
    torch.manual_seed(0)
    data = make_graph(seed=0)
    model = GCN(data.num_features, 16, 2, int(data.y.max()) + 1, dropout=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=5e-4)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(data.x, data.edge_index)[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
    return model.eval(), data


def agreement(module, model, data):
    with torch.no_grad():
        same = module.eval()(data.x, data.edge_index).argmax(1) == model(data.x, data.edge_index).argmax(1)
    return float(same.float().mean())


def test_without_labels_it_predicts_more_as_the_float_model_does(trained):
    model, data = trained
    before = copy.deepcopy(model.state_dict())
    calibrated, _ = dqconvert.prepare(model, TWO_BITS, (data.x, data.edge_index))
    dqconvert.calibrate(calibrated, data)
    found = []
    torch.manual_seed(0)
    module, report = dqconvert.finetune(model, data, TWO_BITS, epochs=20, lr=0.02, on_epoch=found.append)
    assert agreement(module, model, data) > agreement(calibrated, model, data) + 0.1
    assert not module.training
    assert report == module.report
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [epoch.number for epoch in found] == list(range(1, 21))
    scores = [epoch.score for epoch in found]
    assert scores[:10] == [None] * 10
    assert max(scores[10:]) == found[-1].best == pytest.approx(agreement(module, model, data))


def test_the_first_loss_is_its_definition(trained):
    model, data = trained
    model = copy.deepcopy(model)
    for conv in model.modules():
        if isinstance(conv, nn.Dropout):
            conv.p = 0.0
    found = []
    options = {"labels": "y", "mask": "train_mask", "temperature": 3.0, "distil": 2.0}
    dqconvert.finetune(model, data, FLOAT, epochs=1, on_epoch=found.append, **options)
    module, _ = dqconvert.prepare(model, FLOAT, (data.x, data.edge_index))
    dqconvert.calibrate(module, data)
    out, target = module.train()(data.x, data.edge_index), model(data.x, data.edge_index)
    p, q = F.softmax(target / 3, -1), F.log_softmax(out / 3, -1)
    wanted = 2.0 * 9 * (p * (p.log() - q)).sum(-1).mean()
    wanted = wanted + F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
    assert found[0].loss == pytest.approx(wanted.item(), rel=1e-5)


def test_validation_labels_choose_the_epoch(trained):
    model, data = trained
    found = []
    torch.manual_seed(0)
    module, _ = dqconvert.finetune(
        model,
        data,
        "int4-dq",
        epochs=8,
        labels="y",
        mask="train_mask",
        validation="val_mask",
        on_epoch=found.append,
    )
    right = (module(data.x, data.edge_index).argmax(1) == data.y)[data.val_mask]
    assert found[-1].best == pytest.approx(right.float().mean().item())


def test_tensors_serve_a_single_call(trained):
    model, data = trained
    torch.manual_seed(0)
    one, _ = dqconvert.finetune(model, data, "int4-dq", epochs=2, labels="y", mask="train_mask")
    torch.manual_seed(0)
    inputs = (data.x, data.edge_index)
    other, _ = dqconvert.finetune(model, inputs, "int4-dq", epochs=2, labels=data.y, mask=data.train_mask)
    torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=0, atol=0)


def test_it_is_never_worse_than_calibration(trained):
    model, data = trained
    calibrated, _ = dqconvert.prepare(model, "int4-dq", (data.x, data.edge_index))
    dqconvert.calibrate(calibrated, data)
    module, _ = dqconvert.finetune(model, data, "int4-dq", epochs=1, lr=10.0)
    torch.testing.assert_close(module.state_dict(), calibrated.state_dict(), rtol=0, atol=0)


class Pooled(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.gin = GIN(4, 8, 2)
        self.lin = nn.Linear(8, out)

    def forward(self, x, edge_index, batch):
        return self.lin(global_mean_pool(self.gin(x, edge_index), batch))


def graphs(number, numbers=False):
    torch.manual_seed(3)
    labels = torch.rand(number, 1) if numbers else torch.randint(3, (number, 1))
    return [
        Data(x=torch.randn(9, 4), edge_index=torch.randint(9, (2, 30)), y=label if numbers else label.view(1))
        for label in labels
    ]


@pytest.mark.parametrize("out", [3, 1], ids=["classes", "numbers"])
def test_a_loader_of_graphs(out):
    torch.manual_seed(0)
    model = Pooled(out)
    loader = DataLoader(graphs(24, numbers=out == 1), batch_size=8, shuffle=True)
    found = []
    module, _ = dqconvert.finetune(model, loader, "int8-dq", epochs=6, labels="y", on_epoch=found.append)
    assert found[-1].loss < found[0].loss
    whole = next(iter(DataLoader(graphs(24), batch_size=24)))
    assert dqconvert.convert(module)(whole.x, whole.edge_index, whole.batch).shape == (24, out)


def test_a_list_of_graphs_and_pairs_of_a_loader():
    model = Pooled(3)
    pairs = [(batch, "target") for batch in DataLoader(graphs(8), batch_size=4)]
    for data in (graphs(4), pairs):
        module, _ = dqconvert.finetune(model, data, "int8-dq", epochs=2, labels="y")
        assert all(quantizer.is_observed() for _, quantizer in module.quantizers())


class StopError(Exception):
    pass


@pytest.mark.parametrize("at", [3, 7], ids=["first half", "second half"])
def test_it_goes_on_as_if_it_had_not_been_interrupted(trained, tmp_path, at):
    model, data = trained
    options = {"epochs": 9, "labels": "y", "mask": "train_mask", "validation": "val_mask"}
    torch.manual_seed(0)
    whole, _ = dqconvert.finetune(model, data, "int4-dq", **options)

    def stop(epoch):
        if epoch.number == at:
            raise StopError

    torch.manual_seed(0)
    with pytest.raises(StopError):
        dqconvert.finetune(model, data, "int4-dq", **options, resume=tmp_path / "state", on_epoch=stop)
    torch.manual_seed(5)
    found = []
    again, _ = dqconvert.finetune(model, data, "int4-dq", **options, resume=tmp_path / "state", on_epoch=found.append)
    assert found[0].number == at + 1
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_state_of_another_training_is_refused(trained, tmp_path):
    model, data = trained
    dqconvert.finetune(model, data, "int4-dq", epochs=1, resume=tmp_path / "state")
    with pytest.raises(dqconvert.CheckpointError, match=r"is the state of another fine-tuning \(epochs 1\)"):
        dqconvert.finetune(model, data, "int4-dq", epochs=2, resume=tmp_path / "state")
    with pytest.raises(dqconvert.CheckpointError, match=r"another fine-tuning \(distil 5.0, labels False\)"):
        dqconvert.finetune(model, data, "int4-dq", epochs=1, distil=1.0, labels="y", resume=tmp_path / "state")
    state = torch.load(tmp_path / "state")
    del state["module"]["convs.0.quant.message.min_val"]
    torch.save(state, tmp_path / "less")
    with pytest.raises(dqconvert.CheckpointError, match="another fine-tuning, of another model or config"):
        dqconvert.finetune(model, data, "int4-dq", epochs=1, resume=tmp_path / "less")
    with pytest.raises(dqconvert.CheckpointError, match=r"another fine-tuning \(qconfig int4-dq\)"):  # the same keys
        dqconvert.finetune(model, data, "int8-dq", epochs=1, resume=tmp_path / "state")
    other = copy.deepcopy(model)
    other.convs[0].bias.data += 1
    with pytest.raises(dqconvert.CheckpointError, match=r"another fine-tuning \(weights [0-9a-f]{8}\)"):
        dqconvert.finetune(other, data, "int4-dq", epochs=1, resume=tmp_path / "state")
    torch.save({"dqconvert_finetune": 1}, tmp_path / "part")
    with pytest.raises(dqconvert.CheckpointError, match="is no state of a fine-tuning"):
        dqconvert.finetune(model, data, "int4-dq", epochs=1, resume=tmp_path / "part")
    torch.save({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(dqconvert.CheckpointError, match="is no state of a fine-tuning"):
        dqconvert.finetune(model, data, "int4-dq", epochs=1, resume=tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs a whole number from 1 on, got 0"),
        ({"epochs": True}, "epochs a whole number from 1 on, got True"),
        ({"lr": 0}, "lr a number above 0, got 0"),
        ({"lr": float("nan")}, "lr a number above 0, got nan"),
        ({"distil": -1}, "distil a number from 0 on, got -1"),
        ({"distil": 0}, "distil=0 leaves nothing to learn from without labels"),
        ({"mask": "train_mask"}, "mask and validation say which labels to use"),
        (
            {"labels": "y", "mask": "train"},
            "mask='train' is not in the Data, which has .*, y; did you mean 'train_mask'",
        ),
        ({"labels": torch.zeros(3)}, r"labels a tensor of 2500 rows, as the output has, got float32 \[3\]"),
        ({"labels": "y", "mask": "x"}, "mask a bool tensor of 2500 rows, as the output has, got float32"),
    ],
)
def test_wrong_arguments(trained, options, message):
    model, data = trained
    with pytest.raises(dqconvert.ConfigError, match=message):
        dqconvert.finetune(model, data, "int4-dq", **{"epochs": 1, **options})


def test_fields_of_no_data_object(trained):
    model, data = trained
    with pytest.raises(dqconvert.ConfigError, match="labels='y' is a field of data objects, and the data is a tuple"):
        dqconvert.finetune(model, (data.x, data.edge_index), "int4-dq", epochs=1, labels="y")


def test_data_of_nothing():
    with pytest.raises(dqconvert.ConfigError, match="there is no data"):
        dqconvert.finetune(Pooled(2), [], "int4-dq", epochs=1)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("out", "labels", "message"),
    [
        (
            1,
            torch.tensor([0, 1, 1]),
            r"labels of int64 \[3\] for an output of \[3, 1\]: .* for one column pass labels as floats",
        ),
        (
            3,
            torch.tensor([[0], [1], [1]]),
            r"labels of int64 \[3, 1\] for an output of \[3, 3\]: classes are one whole number",
        ),
        (3, torch.tensor([True, False, True]), "labels of bool"),
        (3, torch.tensor([0, 3, 1]), "labels from 0 to 3, and the output has 3 columns, for classes 0 to 2"),
        (3, torch.tensor([0, -1, 1]), "labels from -1 to 1"),
        (3, torch.rand(3), r"the output's rows have shape \[3, 3\], the labels \[3\]"),
    ],
)
@pytest.mark.parametrize("own", [None, lambda output, labels: output.sum()], ids=["ours", "the user's loss"])
def test_labels_that_do_not_fit_the_output(out, labels, message, own):
    """A cross-entropy over one column, above all, is zero whatever the labels are."""
    batch = next(iter(DataLoader(graphs(3), batch_size=3)))
    inputs = (batch.x, batch.edge_index, batch.batch)
    everything = torch.ones(3, dtype=torch.bool)
    with pytest.raises(dqconvert.ConfigError, match=message):
        dqconvert.finetune(Pooled(out), inputs, "int8-dq", epochs=1, labels=labels, validation=everything, loss=own)


def test_several_numbers_per_row_are_no_scores():
    batch = next(iter(DataLoader(graphs(3), batch_size=3)))
    inputs = (batch.x, batch.edge_index, batch.batch)
    model, found = Pooled(3).eval(), []
    labels, module = torch.rand(3, 3), dqconvert.prepare(model, FLOAT_POOLED, inputs)[0]
    dqconvert.calibrate(module, inputs)
    out, target = module.train()(*inputs), model(*inputs)
    wanted = 5 * F.mse_loss(out, target) / target.var(correction=0) + F.mse_loss(out, labels)
    dqconvert.finetune(model, inputs, FLOAT_POOLED, epochs=1, labels=labels, on_epoch=found.append)
    assert found[0].loss == pytest.approx(wanted.item(), rel=1e-4)


def test_a_last_batch_of_one_number_counts_by_its_square():
    (inputs,) = [(batch.x, batch.edge_index, batch.batch) for batch in DataLoader(graphs(1), batch_size=1)]
    model, found = Pooled(1).eval(), []
    module, _ = dqconvert.prepare(model, FLOAT_POOLED, inputs)
    dqconvert.calibrate(module, inputs)
    out, target = module.train()(*inputs), model(*inputs)
    dqconvert.finetune(model, inputs, FLOAT_POOLED, epochs=1, on_epoch=found.append)
    assert found[0].loss == pytest.approx(5 * ((out - target) / target).square().item(), rel=1e-4)
