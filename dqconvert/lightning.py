"""``QuantizationCallback`` for Lightning's ``Trainer`` (the extra ``lightning``)."""

from __future__ import annotations

import copy
import inspect
import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from dqconvert.calibrate import calibrate as calibrate_module
from dqconvert.calibrate import callee_of
from dqconvert.calibrate import observe_weights as observe_weights
from dqconvert.errors import CommandError, ConfigError
from dqconvert.prepared import PreparedModule
from dqconvert.quant import FakeQuantize
from dqconvert.schedule import Annealing, schedule
from dqconvert.tally import tallies_of
from dqconvert.trace.given import calls_of, is_single
from dqconvert.words import listed

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
except ImportError as error:
    raise CommandError(
        f"dqconvert.lightning needs lightning 2.6 or later, which cannot be imported ({error}): "
        f"pip install 'dqconvert[lightning]'"
    ) from error

LOG = logging.getLogger("dqconvert")
_KEY = "dqconvert_random_state"


class QuantizationCallback(Callback):
    """Lets Lightning's ``Trainer`` train prepared modules, wherever a ``LightningModule`` holds them.

    - **Before training** quantizers have no ranges, and evaluating them is an error. With ``calibrate`` they get them
      from data; without, the sanity check passes in float where there are none.
    - **During training** it sets what :func:`dqconvert.schedule` sets, step by step: annealed protection, frozen ranges
      and batch norms.
    - **Logged**, to every logger of the trainer, as ``quantizers/PATH/…``: ``low`` and ``high``, the ends of the range;
      ``clipped``, the share of values beyond the grid, and ``used``, the share of codes that occur, in an evaluation of
      the step's batch; and to loggers with TensorBoard's histograms those of the codes.
    - **Checkpoints** hold the state of the random generators, of each process. A training that goes on from one that
      was written at the end of an epoch is the one that was not interrupted, bit for bit: the same shuffling, dropout
      and protection. (Lightning goes on in the middle of an epoch only with loaders that can.)
    - **Averaged weights** (``WeightAveraging``, ``EMAWeightAveraging``, ``StochasticWeightAveraging``) get ranges of
      their own when they are validated, in checkpoints, and at the end.

    Steps are the trainer's ``global_step``.

    Args:
        calibrate: Data for prepared modules without ranges, as :func:`dqconvert.calibrate` takes it; with several
            prepared modules, a dict of such by their path in the ``LightningModule``. ``None`` (the default): none.
        batches: How many batches of it to use at most; ``None``: all.
        protect: How protection falls to 0: ``"constant"`` (the default: it stays), ``"linear"`` or ``"cosine"``.
        steps: When it is 0; ``None``: at the end of the training, which the trainer has to know.
        freeze_ranges: The step from which ranges stay; ``None``: they never freeze.
        freeze_batch_norm: The step from which batch norms use their running averages; ``None``: never.
        log_every: After how many steps to log; 0: never. At such a step the batch is evaluated once more.

    Raises:
        CommandError: On import, if Lightning is missing (``pip install 'dqconvert[lightning]'``).
        ConfigError: For numbers out of bounds; in ``fit``, if the ``LightningModule`` holds no prepared module.

    Example:
        >>> callback = QuantizationCallback(protect="cosine", freeze_ranges=800, log_every=100)
        >>> callback.state_key
        'QuantizationCallback'
    """

    def __init__(
        self,
        *,
        calibrate: Any = None,
        batches: int | None = None,
        protect: Annealing = "constant",
        steps: int | None = None,
        freeze_ranges: int | None = None,
        freeze_batch_norm: int | None = None,
        log_every: int = 0,
    ) -> None:
        numbers = {"steps": steps, "freeze_ranges": freeze_ranges, "freeze_batch_norm": freeze_batch_norm}
        for name, value in {**numbers, "log_every": log_every}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ConfigError(f"QuantizationCallback: {name} is a number of steps, 0 or more, got {value!r}")
        if steps == 0:
            raise ConfigError("QuantizationCallback: steps is when protection ends, from 1 on, got 0")
        self.calibrate = calibrate
        self.batches = batches
        self.protect: Annealing = protect
        self.steps = steps
        self.freezing = {"freeze_ranges": freeze_ranges, "freeze_batch_norm": freeze_batch_norm}
        self.log_every = log_every
        self._states: list[dict[str, Any]] | None = None
        self._unrounded: list[FakeQuantize] = []
        self._calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._watched: list[tuple[PreparedModule, Any]] = []

    @property
    def state_key(self) -> str:
        return type(self).__name__

    # -- before training ---------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        modules = dict(_prepared(pl_module))
        if not modules:
            raise ConfigError(
                f"QuantizationCallback: {type(pl_module).__name__} holds no prepared module: prepare its model in "
                f"__init__: self.net, _ = dqconvert.prepare(net)."
            )
        if self.protect != "constant" and self.steps is None and trainer.estimated_stepping_batches == float("inf"):
            raise ConfigError("QuantizationCallback: protect falls over the training, which has no end: give steps.")
        before = _random_state()
        if self.calibrate is not None:
            for path, data in self._data(modules).items():
                if not all(quantizer.is_observed() for _, quantizer in modules[path].quantizers()):
                    calibrate_module(modules[path], _on_device(data, modules[path]), self.batches)
        _set_random_state(before)  # loaders draw, and a training that goes on does not come by here
        if self._states is not None:
            if len(self._states) == trainer.world_size:
                _set_random_state(self._states[trainer.global_rank])
            else:
                LOG.warning(
                    "the checkpoint has random states of %d processes, and there are %d: the training goes on, and not "
                    "as it would have without a break",
                    len(self._states),
                    trainer.world_size,
                )
            self._states = None

    def _data(self, modules: Mapping[str, PreparedModule]) -> Mapping[str, Any]:
        if len(modules) == 1 and not (isinstance(self.calibrate, dict) and self.calibrate.keys() == modules.keys()):
            return {next(iter(modules)): self.calibrate}
        if not isinstance(self.calibrate, dict) or not self.calibrate.keys() <= modules.keys():
            raise ConfigError(
                f"QuantizationCallback: there are several prepared modules: give calibrate as a dict by path, of "
                f"{listed(modules)}."
            )
        return self.calibrate

    def on_sanity_check_start(self, trainer: Any, pl_module: nn.Module) -> None:
        for _, module in _prepared(pl_module):
            found = [quantizer for _, quantizer in module.quantizers()]
            self._unrounded += [one for one in found if one.fake_quant_enabled and not one.is_observed()]
        for quantizer in self._unrounded:
            quantizer.fake_quant_enabled = False

    def on_sanity_check_end(self, trainer: Any, pl_module: nn.Module) -> None:
        self._round_again()

    def _round_again(self) -> None:
        for quantizer in self._unrounded:
            quantizer.fake_quant_enabled = True
        self._unrounded = []

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if self.protect != "constant" or any(value is not None for value in self.freezing.values()):
            end = self.steps or (trainer.estimated_stepping_batches if self.protect != "constant" else 1)
            for _, module in _prepared(pl_module):
                schedule(module, step, end, protect=self.protect, **self.freezing)
        if self._logs(trainer, step):
            self._watch(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._watched:
            self._unwatch()
            if trainer.global_step % self.log_every == 0:  # where gradients accumulate, not every batch is a step
                self._log(trainer, pl_module, trainer.global_step)
            self._calls = {}

    def _logs(self, trainer: Any, step: int) -> bool:
        return bool(self.log_every and trainer.loggers and not self._watched and (step + 1) % self.log_every == 0)

    def _watch(self, pl_module: nn.Module) -> None:
        """Remembers what the modules are called with in this step."""
        for path, module in _prepared(pl_module):
            forward = module.forward

            def called(*args: Any, path: str = path, forward: Any = forward, **kwargs: Any) -> Any:
                self._calls[path] = args, kwargs
                return forward(*args, **kwargs)

            vars(module)["forward"], was = called, vars(module).get("forward")
            self._watched.append((module, was))

    def _unwatch(self) -> None:
        for module, was in self._watched:
            if was is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = was
        self._watched = []

    def _log(self, trainer: Any, pl_module: nn.Module, step: int) -> None:
        calls = self._calls
        if not trainer.is_global_zero:
            return
        before = _random_state()
        for where, module in _prepared(pl_module):
            metrics: dict[str, float] = {}
            found = tallies_of(module, _bound(module, *calls[where])) if where in calls else {}
            for path, quantizer in module.quantizers():
                if not quantizer.is_observed():
                    continue
                name = f"quantizers/{f'{where}.' if where else ''}{path}"
                low, high = quantizer.range
                metrics |= {f"{name}/low": float(low.min()), f"{name}/high": float(high.max())}
                if (tally := found.get(path)) is None:
                    continue
                metrics |= {f"{name}/clipped": tally.share, f"{name}/used": float((tally.codes > 0).float().mean())}
                for logger in trainer.loggers:
                    if hasattr(logger.experiment, "add_histogram_raw"):
                        _add_histogram(logger.experiment, f"{name}/codes", tally.codes, quantizer.quant_min, step)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step)
        _set_random_state(before)

    # -- averaged weights --------------------------------------------------------------------------------------------

    def on_validation_batch_start(
        self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        first = batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking
        swapped = any(getattr(one, "_average_model", None) is not None for one in _averaging(trainer, WeightAveraging))
        if first and swapped and trainer.state.fn == "fit":  # all of this, ranges too, is swapped back after validation
            for _, module in _prepared(pl_module):
                observe_weights(module)

    def on_fit_end(self, trainer: Any, pl_module: nn.Module) -> None:
        if _averaging(trainer, (WeightAveraging, StochasticWeightAveraging)):
            for _, module in _prepared(pl_module):
                observe_weights(module)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        self._round_again()
        self._unwatch()
        self._calls = {}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        before = _random_state()
        states: list[Any] = [before]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, before)
        checkpoint[_KEY] = states
        for averaging in _averaging(trainer, WeightAveraging):
            if (average := averaging._average_model) is None:
                continue
            for _, module in _prepared(average.module):
                observe_weights(module)
            if "current_model_state" in checkpoint:  # it has put its average into the checkpoint, and came before
                checkpoint["state_dict"] = average.module.state_dict()
            _set_random_state(before)

    def on_load_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # also called where a checkpoint is validated or tested
            self._states = checkpoint.get(_KEY)


def _prepared(root: nn.Module) -> Iterator[tuple[str, PreparedModule]]:
    return ((path, module) for path, module in root.named_modules() if isinstance(module, PreparedModule))


def _averaging(trainer: Any, kinds: Any) -> list[Any]:
    return [callback for callback in trainer.callbacks if isinstance(callback, kinds)]


def _bound(module: PreparedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    callee = callee_of(module)
    names = list(inspect.signature(module.forward).parameters)
    return next(iter(calls_of(callee, [dict(zip(names, args, strict=False)) | kwargs])))


def _on_device(data: Any, module: nn.Module) -> Any:
    """Returns data where a module's parameters are, one call's worth or several; what was given stays where it is."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if device.type == "cpu":
        return data
    if is_single(callee_of(module), data):
        return _moved(copy.copy(data), device)
    return (_moved(copy.copy(one), device) for one in data)


def _moved(value: Any, device: torch.device) -> Any:
    from lightning.fabric.utilities import move_data_to_device

    return move_data_to_device(value, device)


def _add_histogram(writer: Any, name: str, counts: Tensor, first: int, step: int) -> None:
    """Writes how often each code occurs, from the code ``first`` on."""
    codes = torch.arange(first, first + len(counts), dtype=torch.float64)
    seen = codes[counts > 0]
    writer.add_histogram_raw(
        name,
        min=float(seen.min()) if len(seen) else 0.0,
        max=float(seen.max()) if len(seen) else 0.0,
        num=int(counts.sum()),
        sum=float((codes * counts).sum()),
        sum_squares=float((codes.square() * counts).sum()),
        bucket_limits=(codes + 0.5).tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )


def _random_state() -> dict[str, Any]:
    """Returns the states of torch's, Python's and numpy's generators, as a checkpoint can hold them."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    drawn: Any = numpy.random.get_state(legacy=False)
    key = torch.from_numpy(drawn["state"]["key"].astype("int64"))
    state["numpy"] = {**drawn, "state": {**drawn["state"], "key": key}}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    drawn = state["numpy"]
    numpy.random.set_state(
        {**drawn, "state": {**drawn["state"], "key": drawn["state"]["key"].numpy().astype("uint32")}}
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
