"""Lightning's Trainer with prepared modules: what the callback sets, logs and keeps; trainings resume bit for bit."""

from __future__ import annotations

import copy
import importlib
import itertools
import logging
import math
import sys
import warnings

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN

import dqconvert
from dqconvert.errors import CommandError, ConfigError

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import (  # noqa: E402
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger  # noqa: E402

from dqconvert.calibrate import callee_of  # noqa: E402
from dqconvert.lightning import QuantizationCallback, _on_device, observe_weights  # noqa: E402
from dqconvert.quant import Protection  # noqa: E402
from dqconvert.trace.given import calls_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def graphs(number=12):
    made = torch.Generator().manual_seed(0)
    sizes = range(10, 10 + number)
    return [
        Data(
            x=torch.randn(n, 6, generator=made),
            edge_index=torch.randint(n, (2, 3 * n), generator=made),
            y=torch.randint(3, (n,), generator=made),
        )
        for n in sizes
    ]


GRAPHS = graphs()
ALL_OF_WEIGHTS = {"preset": "int8-dq", "weight": {"range": "minmax"}}


class Lit(LightningModule):
    def __init__(self, qconfig="int8-dq"):
        super().__init__()
        torch.manual_seed(3)
        net = GIN(6, 8, 2, 3, norm="batch_norm", dropout=0.3)
        self.net, _ = dqconvert.prepare(net, qconfig, (GRAPHS[0].x, GRAPHS[0].edge_index))
        self.losses, self.seen = [], []

    def _loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch.x, batch.edge_index).float(), batch.y)

    def training_step(self, batch, index):
        loss = self._loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, index):
        quantizer = dict(self.net.quantizers())["convs.0.nn.lins.0.quant.weight"]
        self.seen.append((quantizer.max_val.item(), self.net.convs[0].nn.lins[0].weight.max().item()))
        self.log("val", self._loss(batch), batch_size=4)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


def loader(shuffle=True):
    return DataLoader(GRAPHS, 4, shuffle=shuffle)


def trainer(folder, *callbacks, epochs=2, **options):
    options = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0, **options}
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=options.pop("devices", 1),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **options,
    )


def fit(lit, folder, *callbacks, seed=5, ckpt_path=None, **options):
    torch.manual_seed(seed)
    made = trainer(folder, *callbacks, **options)
    made.fit(lit, loader(), loader(shuffle=False), ckpt_path=ckpt_path)
    return made


# -- before training ---------------------------------------------------------------------------------------------------


def test_the_sanity_check_passes_in_float_where_nothing_was_observed(tmp_path):
    lit = Lit()
    made = fit(lit, tmp_path, QuantizationCallback(), epochs=1, num_sanity_val_steps=2)
    assert len(lit.seen) == 2 + 3
    assert lit.seen[0][0] == -math.inf  # not even the sanity check observed
    assert all(one.fake_quant_enabled and one.is_observed() for _, one in lit.net.quantizers())
    assert made.callback_metrics["val"] > 0
    with pytest.raises(dqconvert.ObserverError, match="num_sanity_val_steps=0"):
        fit(Lit(), tmp_path, epochs=1, num_sanity_val_steps=2)


@pytest.mark.study
def test_what_was_switched_off_for_the_sanity_check_is_on_again_when_it_fails(tmp_path):
    lit = Lit()
    lit.validation_step = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(lit, tmp_path, QuantizationCallback(), num_sanity_val_steps=1)
    assert all(one.fake_quant_enabled for _, one in lit.net.quantizers())


def test_calibration_comes_first_and_leaves_the_random_state_alone(tmp_path):
    plain, calibrated = Lit(), Lit()
    expected = copy.deepcopy(calibrated.net)
    dqconvert.calibrate(expected, GRAPHS, batches=5)
    ranges = [(one.min_val.clone(), one.max_val.clone()) for _, one in expected.quantizers()]
    found = []

    class Look(lightning.Callback):
        def on_train_start(self, trainer, module):
            found.extend((one.min_val.clone(), one.max_val.clone()) for _, one in module.net.quantizers())
            found.append(torch.get_rng_state())

    fit(calibrated, tmp_path, QuantizationCallback(calibrate=GRAPHS, batches=5), Look(), epochs=1)
    assert all(torch.equal(a, b) for pair in zip(found, ranges, strict=False) for a, b in zip(*pair, strict=True))
    state = found[-1]
    found.clear()
    fit(plain, tmp_path, QuantizationCallback(), Look(), epochs=1)
    assert torch.equal(found[-1], state)


@pytest.mark.study
def test_several_modules_are_calibrated_by_path(tmp_path):
    lit = Lit()
    lit.other = copy.deepcopy(lit.net)
    with pytest.raises(ConfigError, match="give calibrate as a dict by path, of net, other"):
        fit(lit, tmp_path, QuantizationCallback(calibrate=GRAPHS))
    fit(lit, tmp_path, QuantizationCallback(calibrate={"other": GRAPHS}), epochs=1)
    assert all(one.is_observed() for _, one in lit.other.quantizers())


def test_a_module_without_prepared_ones_is_refused(tmp_path):
    lit = Lit()
    lit.net = GIN(6, 8, 2, 3)
    with pytest.raises(ConfigError, match="Lit holds no prepared module"):
        fit(lit, tmp_path, QuantizationCallback())


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"freeze_ranges": -1}, {"log_every": 1.5}, {"freeze_batch_norm": True}]
)
def test_numbers_out_of_bounds_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        QuantizationCallback(**wrong)


def test_without_lightning_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "dqconvert.lightning")
    with pytest.raises(CommandError, match=r"pip install 'dqconvert\[lightning\]'"):
        importlib.import_module("dqconvert.lightning")


# -- during training ---------------------------------------------------------------------------------------------------


def test_ranges_and_batch_norms_freeze_at_their_steps(tmp_path):
    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            low = torch.stack([one.min_val for _, one in module.net.quantizers()])
            mean = next(one.running_mean for one in module.net.modules() if isinstance(one, nn.BatchNorm1d))
            found.append((low.clone(), mean.clone()))

    found = []
    fit(Lit("int8-qat"), tmp_path, QuantizationCallback(freeze_ranges=4, freeze_batch_norm=5), Look(), epochs=3)
    moves = [[not torch.equal(a[k], b[k]) for a, b in itertools.pairwise(found)] for k in (0, 1)]
    assert moves[0] == [True] * 3 + [False] * 5
    assert moves[1] == [True] * 4 + [False] * 4


def test_protection_falls_to_the_end_of_the_training(tmp_path):
    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            (drawn,) = [one for one in module.net.modules() if isinstance(one, Protection)]
            found.append(1.0 if drawn._share is None else float(drawn._share))

    found = []
    fit(Lit(), tmp_path, QuantizationCallback(protect="linear"), Look(), epochs=2)
    torch.testing.assert_close(torch.tensor(found), 1 - torch.arange(6) / 6)
    with pytest.raises(ConfigError, match="give steps"):
        fit(Lit(), tmp_path, QuantizationCallback(protect="linear"), epochs=-1)


def test_ranges_clipping_and_codes_are_logged_to_every_logger(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    plain, logged = Lit(), Lit()
    fit(plain, tmp_path)
    fit(logged, tmp_path, QuantizationCallback(log_every=2), logger=loggers)
    assert logged.losses == plain.losses  # looking changes nothing

    rows = (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()
    names, steps = rows[0].split(","), [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    steps = [row for row in steps if row["quantizers/net.convs.0.quant.message/clipped"]]
    assert [int(row["step"]) for row in steps] == [2, 4, 6]
    quantizers = dict(logged.net.quantizers())
    assert {f"quantizers/net.{path}/{what}" for path in quantizers for what in ("low", "high", "clipped", "used")} < {
        *names
    }
    for row in steps:
        shares = [float(value) for name, value in row.items() if name.endswith(("/clipped", "/used"))]
        assert all(0 <= share <= 1 for share in shares)
        assert max(shares) > 0

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "board/version_0"), size_guidance={"histograms": 0}).Reload()
    assert {tag.removeprefix("quantizers/net.").removesuffix("/codes") for tag in board.Tags()["histograms"]} == {
        *quantizers
    }
    histogram = board.Histograms("quantizers/net.convs.0.nn.lins.0.quant.weight/codes")[-1].histogram_value
    assert histogram.num == 6 * 8
    assert sum(histogram.bucket) == 6 * 8


def test_bf16_mixed(tmp_path):
    lit = Lit()
    made = fit(lit, tmp_path, QuantizationCallback(log_every=2), precision="bf16-mixed", logger=CSVLogger(tmp_path))
    assert math.isfinite(lit.losses[-1])
    assert made.callback_metrics["val"] > 0
    assert {one.min_val.dtype for _, one in lit.net.quantizers()} == {torch.float32}


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("qconfig", ["int8-dq", "int8-nqat"])
def test_a_resumed_training_is_the_one_without_a_break(tmp_path, qconfig):
    options = {"protect": "cosine" if qconfig == "int8-dq" else "constant", "freeze_ranges": 8, "steps": 12}
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = Lit(qconfig)
    fit(whole, tmp_path, QuantizationCallback(**options), keep, epochs=4, enable_checkpointing=True)
    resumed = Lit(qconfig)
    path = tmp_path / "epoch=1.ckpt"
    fit(resumed, tmp_path, QuantizationCallback(**options), seed=99, epochs=4, ckpt_path=path, num_sanity_val_steps=2)
    assert resumed.losses == whole.losses[6:]
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
    without = Lit(qconfig)
    fit(without, tmp_path, seed=99, epochs=4, ckpt_path=path)
    assert without.losses != whole.losses[6:]  # without the callback it is another one


def test_a_loaded_checkpoint_evaluates_as_the_module_did(tmp_path):
    lit = Lit()
    fit(lit, tmp_path, QuantizationCallback()).save_checkpoint(tmp_path / "last.ckpt")
    loaded = Lit.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False).eval()
    one = GRAPHS[0]
    assert torch.equal(loaded.net(one.x, one.edge_index), lit.eval().net(one.x, one.edge_index))


def test_a_validated_checkpoint_does_not_decide_what_a_training_after_it_draws(tmp_path):
    fit(Lit(), tmp_path, QuantizationCallback()).save_checkpoint(tmp_path / "last.ckpt")
    fresh, after = Lit(), Lit()
    fit(fresh, tmp_path, QuantizationCallback(), seed=7, epochs=1)
    one = trainer(tmp_path, QuantizationCallback(), epochs=1)
    one.validate(after, loader(shuffle=False), ckpt_path=tmp_path / "last.ckpt", weights_only=False, verbose=False)
    after.load_state_dict(Lit().state_dict())
    torch.manual_seed(7)
    one.fit(after, loader(), loader(shuffle=False))
    assert after.losses == fresh.losses


@pytest.mark.parametrize("form", ["one", "pair", "dict", "several"])
def test_data_goes_where_the_module_is_and_stays_where_it_was(form):
    """On the device without memory, which torch has everywhere."""
    module = Lit().net
    data = {
        "one": GRAPHS[0],
        "pair": (GRAPHS[0].x, GRAPHS[0].edge_index),
        "dict": {"x": GRAPHS[0].x, "edge_index": GRAPHS[0].edge_index},
        "several": GRAPHS[:2],
    }[form]
    moved = _on_device(data, copy.deepcopy(module).to("meta"))
    calls = [list(call.arguments.values()) for call in calls_of(callee_of(module), moved)]
    assert len(calls) == (2 if form == "several" else 1)
    assert {tensor.device.type for call in calls for tensor in call[:2]} == {"meta"}
    assert GRAPHS[0].x.device.type == "cpu"


# -- averaged weights --------------------------------------------------------------------------------------------------


@pytest.mark.study
def test_averaged_weights_have_ranges_of_their_own(tmp_path):
    """The average of weights that grow in training lies within them: its range is narrower than that of training."""
    for order in (0, 1):
        lit = Lit(ALL_OF_WEIGHTS)
        callbacks = [EMAWeightAveraging(decay=0.9), QuantizationCallback()]
        fit(lit, tmp_path, *(callbacks if order == 0 else reversed(callbacks)))
        assert all(high == weight for high, weight in lit.seen)
        quantizer = dict(lit.net.quantizers())["convs.0.nn.lins.0.quant.weight"]
        assert quantizer.max_val.item() == lit.net.convs[0].nn.lins[0].weight.max().item()
    lit = Lit(ALL_OF_WEIGHTS)
    fit(lit, tmp_path, EMAWeightAveraging(decay=0.9))
    assert not all(high == weight for high, weight in lit.seen)  # without the callback


@pytest.mark.sample(2)
@pytest.mark.parametrize("first", [0, 1])
def test_checkpoints_hold_averages_with_ranges_of_their_own_and_resume(tmp_path, first):
    """Whichever callback comes first: one puts the average into the checkpoint, the other observes its weights."""

    def callbacks():
        found = [EMAWeightAveraging(decay=0.9), QuantizationCallback()]
        return found[first:] + found[:first]

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, resumed = Lit(ALL_OF_WEIGHTS), Lit(ALL_OF_WEIGHTS)
    fit(whole, tmp_path, *callbacks(), keep, epochs=2, enable_checkpointing=True)
    assert all(high == weight for high, weight in whole.seen)  # in validation
    loaded = Lit.load_from_checkpoint(tmp_path / "epoch=0.ckpt", qconfig=ALL_OF_WEIGHTS, weights_only=False).net
    quantizer = dict(loaded.quantizers())["convs.0.nn.lins.0.quant.weight"]
    assert quantizer.max_val.item() == loaded.convs[0].nn.lins[0].weight.max().item()
    fit(resumed, tmp_path, *callbacks(), seed=99, epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.losses == whole.losses[3:]
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


@pytest.mark.study
def test_training_goes_on_as_if_averages_had_not_been_looked_at(tmp_path):
    plain, looked = Lit(), Lit()
    fit(plain, tmp_path, EMAWeightAveraging(decay=0.9))
    fit(looked, tmp_path, EMAWeightAveraging(decay=0.9), QuantizationCallback())
    assert looked.losses == plain.losses


@pytest.mark.study
def test_stochastic_weight_averaging_ends_with_ranges_of_the_average(tmp_path):
    lit = Lit(ALL_OF_WEIGHTS)
    fit(lit, tmp_path, StochasticWeightAveraging(1e-2, swa_epoch_start=1), QuantizationCallback(), epochs=4)
    weight = lit.net.convs[0].nn.lins[0].weight
    assert dict(lit.net.quantizers())["convs.0.nn.lins.0.quant.weight"].max_val.item() == weight.max().item()


@pytest.mark.sample(4)
@pytest.mark.parametrize("qconfig", ["int8-dq", "int8-lsq", "int4-dq+", "int8-ptq+"])
def test_observing_weights_is_what_calibrating_finds_for_them(qconfig):
    module = Lit(qconfig).net
    dqconvert.calibrate(module, GRAPHS)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    anew = copy.deepcopy(module)
    for _, quantizer in anew.quantizers():
        quantizer.reset()
    dqconvert.calibrate(anew, GRAPHS)
    observe_weights(module)
    roles = {entry.path: entry.role for entry in module.report.entries}
    learned = any(one.log_scale is not None for _, one in module.quantizers())
    for (path, one), (_, other) in zip(module.quantizers(), anew.quantizers(), strict=True):
        if roles[path] == "weight":
            assert torch.equal(one.max_val, other.max_val) is not learned, path


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.study
def test_two_processes_resume_bit_for_bit(tmp_path, spare):
    """Each draws and shuffles by its own generator; a checkpoint holds both."""
    code = f"""
import sys, torch, warnings; warnings.filterwarnings("ignore"); sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
from pathlib import Path
from test_lightning import *
folder = Path({str(tmp_path)!r})
torch.set_num_threads(1)
def go(epochs, seed, **more):
    lit = Lit()
    options = more.pop("options", {{}}) | {{"devices": 2, "strategy": "ddp_fork"}}
    made = trainer(folder, *more.pop("callbacks"), epochs=epochs, **options)
    torch.manual_seed(seed); made.fit(lit, loader(), loader(shuffle=False), **more)
    return {{name: value.clone() for name, value in lit.state_dict().items()}}
keep = ModelCheckpoint(folder, filename="{{epoch}}", save_top_k=-1)
whole = go(4, 5, callbacks=[QuantizationCallback(), keep], options={{"enable_checkpointing": True}})
again = go(4, 99, callbacks=[QuantizationCallback()], ckpt_path=folder / "epoch=1.ckpt")
assert all(torch.equal(whole[name], again[name]) for name in whole)
without = go(4, 99, callbacks=[], ckpt_path=folder / "epoch=1.ckpt")
assert not all(torch.equal(whole[name], without[name]) for name in whole)
"""
    warnings.simplefilter("ignore")
    done = spare.run(code)
    assert done.returncode == 0, done.stderr
