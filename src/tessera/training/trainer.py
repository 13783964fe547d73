"""The pieces of a run, put together on Composer: `build_trainer` is the table of contents."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from composer import Trainer
from composer.core import Callback
from composer.utils import FSDP2Config, ParallelismConfig, dist
from torch.optim import Optimizer

from tessera.checkpoints import history
from tessera.checkpoints.checkpoint import Checkpoint
from tessera.checkpoints.reader import read_checkpoint
from tessera.config import ConfigError, to_yaml
from tessera.data.batch_schedule import data_rank
from tessera.data.loader import Loader, LoaderState
from tessera.data.validation import validation_batches
from tessera.files import write_whole
from tessera.model.attention.backends import choose
from tessera.model.device_rate import matmul_rate
from tessera.model.tiling import tile_weights
from tessera.optim.optimizers import build_optimizer, leading_group, remember_peak
from tessera.paths import is_remote
from tessera.quantities import short_number
from tessera.tokenizer import Tokenizer, load_tokenizer
from tessera.training import distributed, resume
from tessera.training.callbacks.checkpointer import Checkpointer, RunRecord
from tessera.training.callbacks.evaluator import Batches, Evaluator
from tessera.training.callbacks.probes import Probes, probing_of
from tessera.training.callbacks.progress import Clock
from tessera.training.callbacks.spikes import SpikeGuard
from tessera.training.callbacks.trace import Trace
from tessera.training.callbacks.train_step import TrainStep
from tessera.training.callbacks.watchdog import RecompileWatch, Watchdog
from tessera.training.config import RunConfig
from tessera.training.console import say, warn
from tessera.training.loggers import Sinks, open_sinks
from tessera.training.mlm import MaskedLanguageModel, ShardableEncoder, train_data_spec
from tessera.training.rate_jump import describe_jump
from tessera.training.resume import Saved
from tessera.training.shutdown import StopRequest
from tessera.training.start.machine import Machine

Device = Literal["cpu", "cuda"]


def build_trainer(
    config: RunConfig,
    saved: Saved | None,
    origin: Checkpoint | None,
    *,
    stop: StopRequest,
    closing: ExitStack,
    after_save: Callable[[int], None] = lambda step: None,
) -> Trainer:
    """Assemble a phase: each piece is one line or one function below. Every rank calls this.

    Args:
        config: what to run.
        saved: the phase's own checkpoint to continue from.
        origin: what `start_from` or `initial_weights` names, if it was read already.
        stop: asks for an end of training.
        closing: gets whatever is to be closed in the end.
        after_save: called on rank 0 with the step of each checkpoint that was written.

    Raises:
        ValueError: something does not fit, with the key or file and the way out.
    """
    changes = resume.resumable(config, saved) if saved is not None else []
    if saved is None and origin is None:
        origin = _read_origin(config)
    before = saved.progress.get("phases_before", []) if saved is not None else []
    if saved is None and origin is not None and config.start_from is not None:
        before = history.with_phase(origin)
    device = training_device()
    clock = Clock.from_progress(saved.progress) if saved is not None else Clock()

    tokenizer = load_tokenizer(config.tokenizer)
    loader = build_loader(config, tokenizer, saved)
    changes += loader.changes
    closing.callback(loader.close)
    encoder = build_encoder(config, device, origin)
    model = MaskedLanguageModel(encoder, config.seed)
    optimizer = build_peak_optimizer(config, model, device)
    sinks = open_run_sinks(config, clock, closing)

    train_step = TrainStep(
        config=config,
        model=model,
        optimizer=optimizer,
        clock=clock,
        guard=SpikeGuard.from_progress(config.spikes, saved.progress if saved is not None else {}),
        stop_signal=stop.asked,
        sinks=sinks,
    )
    note_machine(config, train_step, device)
    evaluator = Evaluator(
        interval=config.evaluation.interval,
        at_end=config.evaluation.at_end,
        masking_rate=validation_rate(config),
        train_step=train_step,
        model=model,
        sources=validation_sources(config, tokenizer),
        sinks=sinks,
        owed=saved is not None and saved.progress["evaluation_owed"],
    )
    probes = build_probes(config, tokenizer, saved, train_step, model, sinks)
    # Composer calls them in this order: a step is counted, then evaluated after, then saved.
    callbacks = [
        train_step,
        *recompile_watch(config, device),
        evaluator,
        *probes,
        RunRecord(config, tokenizer, loader, train_step, evaluator, before, *probes),
        Checkpointer(
            config=config,
            train_step=train_step,
            stop=stop,
            before_save=sinks.sync,
            after_save=after_save,
        ),
        *watchdog(config, closing),
        *trace(config, closing),
    ]
    trainer = Trainer(
        model=model,
        train_dataloader=train_data_spec(loader, pin=device == "cuda"),
        optimizers=optimizer,
        max_duration=str(config.duration),
        callbacks=callbacks,
        run_name=config.name,
        seed=config.seed,
        device=_composer(device),
        precision=_precision(config, device),
        device_train_microbatch_size=1,  # our split_batch decides; Composer insists on a number
        accumulate_train_batch_on_tokens=True,
        spin_dataloaders=False,
        parallelism_config=parallelism(config),
        progress_bar=False,
        dist_timeout=config.compute.timeout_minutes * 60,
    )
    begin(trainer, config, saved, origin, changes)
    return trainer


# ---- the process


def prepare_process(config: RunConfig) -> None:
    """Threads, warnings and, with several ranks, the process group.

    Raises:
        ConfigError: what was asked for cannot be had on this machine.
    """
    device = training_device()
    if config.compute.sharding == "fsdp" and device == "cpu" and torch.__version__ < "2.8":
        raise ConfigError(
            "compute.sharding: fsdp without a GPU needs torch 2.8 or newer (this is "
            f"{torch.__version__}): gloo would sum gradients instead of averaging them"
        )
    if config.compute.precision == "amp_bf16" and device == "cpu":
        raise ConfigError(
            "compute.precision: amp_bf16 needs a GPU, and there is none here; leave it at auto, "
            "which is float32 on a CPU"
        )
    if config.compute.threads or "OMP_NUM_THREADS" not in os.environ:
        share = _cores() // distributed.local_world_size()
        torch.set_num_threads(config.compute.threads or share or 1)
    _silence()
    if distributed.world_size() > 1:
        seconds = config.compute.timeout_minutes * 60
        dist.initialize_dist(_composer(device), seconds)
        distributed.give_up_after(seconds)


def training_device() -> Device:
    """Where this process trains."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def matrix_dtype(config: RunConfig, device: Device) -> torch.dtype:
    """The type in which matrices are multiplied."""
    return torch.bfloat16 if _precision(config, device) == "amp_bf16" else torch.float32


# ---- the pieces


def build_loader(config: RunConfig, tokenizer: Tokenizer, saved: Saved | None) -> Loader:
    """This rank's share of the stream of batches, from where the checkpoint left it."""
    return Loader(
        config.train_data,
        config.batch,
        tokenizer,
        vocab_size=config.model.vocab_size,
        seed=config.seed,
        rank=data_rank(
            distributed.rank(), distributed.local_world_size(), distributed.world_size()
        ),
        world_size=distributed.world_size(),
        state=LoaderState.from_json(saved.data) if saved is not None else None,
    )


def build_encoder(
    config: RunConfig, device: Device, origin: Checkpoint | None = None
) -> ShardableEncoder:
    """The model with its first weights: random, or tiles of `origin` if it is to be tiled.

    The weights of a checkpoint to continue from come later, through Composer.
    """
    dtype = matrix_dtype(config, device)
    backend = choose(config.compute.attention, torch.device(device), dtype, config.model.head_size)
    say(f"{config.name}: attention by {backend}" + ", causal" * config.train_data.causal)
    encoder = ShardableEncoder(
        config.model,
        attention=backend,
        z_loss=config.z_loss,
        causal=config.train_data.causal,
    )
    encoder.initialize(config.seed)
    tiles = config.initial_weights
    if tiles is not None and origin is not None:
        small = origin.weights, origin.model_config
        encoder.load_state_dict(tile_weights(*small, config.model, tiles.mode))
    encoder.checkpoint_layers(config.compute.activation_checkpointing)
    if compiles(config, device):
        encoder.compile_layers()
    return encoder


def compiles(config: RunConfig, device: Device) -> bool:
    """Whether torch compiles the model."""
    chosen = config.compute.compile
    return device == "cuda" if chosen == "auto" else chosen


def build_peak_optimizer(
    config: RunConfig, model: MaskedLanguageModel, device: Device
) -> Optimizer:
    """The optimizer at its peak rate, which each step's multiplier is applied to."""
    sharded = config.compute.sharding == "fsdp"
    optimizer = build_optimizer(config.optimizer, model.named_parameters(), device, sharded=sharded)
    remember_peak(optimizer)
    return optimizer


def open_run_sinks(config: RunConfig, clock: Clock, closing: ExitStack) -> Sinks:
    """Who is told what is measured: on rank 0 the run folder's files and loggers, else nobody."""
    if distributed.rank() != 0:
        return Sinks()
    done = clock.done(config.duration.unit)
    return open_sinks(config, step=clock.steps, done=done, closing=closing)


def note_machine(config: RunConfig, train_step: TrainStep, device: Device) -> None:
    """Keep what the run runs on in its folder, and give its peak rate to the step's record."""
    if distributed.rank() != 0:
        return
    dtype, origin = matrix_dtype(config, device), config.start_from
    machine = Machine(
        config.folder,
        device,
        dtype,
        step=train_step.clock.steps,
        before=None if origin is None or is_remote(origin.checkpoint) else Path(origin.checkpoint),
    )
    train_step.peak_flops = machine.peak(
        lambda seconds: matmul_rate(torch.device(device), dtype, seconds=seconds)
    )
    train_step.on_peak = machine.note


def validation_sources(config: RunConfig, tokenizer: Tokenizer) -> dict[str, Batches]:
    """This rank's validation batches of each source that has a validation split.

    Raises:
        ValueError: a source cannot be evaluated on; better now than hours from now.
    """
    data = config.train_data
    if config.evaluation.sources is not None:
        data = replace(data, sources=config.evaluation.sources)
    found: dict[str, Batches] = {}
    for name, source in data.sources.items():
        if source.validation_split is not None and source.weight > 0:
            found[name] = partial(
                validation_batches,
                data,
                name,
                tokenizer,
                vocab_size=config.model.vocab_size,
                masking_rate=validation_rate(config),
                max_tokens=config.evaluation.max_tokens,
                seed=config.seed,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
            )
            next(iter(found[name]()), None)
    return found


def validation_rate(config: RunConfig) -> float | None:
    """Share of the ordinary validation tokens that are masked; None if the next ones are asked."""
    return None if config.train_data.causal else config.evaluation.masking_rate


def build_probes(
    config: RunConfig,
    tokenizer: Tokenizer,
    saved: Saved | None,
    train_step: TrainStep,
    model: MaskedLanguageModel,
    sinks: Sinks,
) -> list[Probes]:
    """The probes, if the configuration asks for any; says what of them is left out.

    Raises:
        ValueError: one of them cannot be asked; better now than hours from now.
    """
    asked = config.evaluation.probes
    if asked is None:
        return []
    probing = probing_of(config, asked, tokenizer)
    for text in probing.left_out:
        say(f"{config.name}: probes: left out: {text}")
    return [
        Probes(
            interval=asked.interval or config.evaluation.interval,
            at_end=config.evaluation.at_end,
            masking_rate=config.evaluation.masking_rate,
            train_step=train_step,
            model=model,
            probing=probing,
            sinks=sinks,
            owed=saved is not None and saved.progress.get("probes_owed", False),
        )
    ]


def recompile_watch(config: RunConfig, device: Device) -> Iterator[Callback]:
    """Says when compiled code is compiled again, where there is any."""
    if compiles(config, device):
        yield RecompileWatch(warn)


def watchdog(config: RunConfig, closing: ExitStack) -> Iterator[Callback]:
    """Prints stacks when a step hangs, unless that is not wanted."""
    minutes = config.watchdog_minutes
    if minutes is not None:
        if distributed.world_size() > 1:  # the others give up on a rank after the timeout
            minutes = min(minutes, 0.8 * config.compute.timeout_minutes)
        made = Watchdog(config.folder, minutes)
        closing.callback(made.stop)
        yield made


def trace(config: RunConfig, closing: ExitStack) -> Iterator[Callback]:
    """Watches where the time of some steps goes, if that is asked for."""
    if config.compute.trace is not None and distributed.rank() == 0:
        yield Trace(config.compute.trace, config.folder, closing)


def parallelism(config: RunConfig) -> ParallelismConfig | None:
    """Composer's configuration of sharding, layer by layer; None for plain DDP.

    What is computed in bfloat16 is for autocast alone to say, as it is without sharding: Composer's
    default would also round what goes from layer to layer, and the embeddings.
    """
    if config.compute.sharding == "none":
        return None
    return ParallelismConfig(fsdp2=FSDP2Config(state_dict_type="full", mixed_precision="FULL"))


# ---- the beginning


def begin(
    trainer: Trainer,
    config: RunConfig,
    saved: Saved | None,
    origin: Checkpoint | None,
    changes: list[str],
) -> None:
    """Load what this phase continues from, say so, and note the configuration in the run folder."""
    state, logger = trainer.state, trainer.logger
    numbers = sum(p.numel() for p in state.model.parameters())
    say(
        f"{config.name}: {short_number(numbers)} parameters on {distributed.world_size()} x "
        f"{'GPU' if training_device() == 'cuda' else 'CPU'} for "
        f"{short_number(config.duration.value)} {config.duration.unit}, in {config.run_folder}"
    )
    if saved is not None:
        carried = resume.resume(state, logger, saved)
        steps, tokens = saved.progress["steps"], short_number(saved.progress["tokens"])
        say(
            f"{config.name}: resumes from {saved.path.name} ({carried}), after {steps} steps, "
            f"{tokens} tokens"
        )
        for change in changes:
            say(f"{config.name}: changed since: {change}")
        for warning in resume.skipped_too_late(config, saved):
            warn(warning)
        jump = describe_jump(config, saved.run_config, saved.progress)
        if jump is not None:
            warn(f"{config.name}: {jump}")
    elif config.start_from is not None and origin is not None:
        carried = resume.start(state, logger, origin, optimizer=config.start_from.optimizer)
        say(f"{config.name}: starts from {origin.path} ({carried})")
    group = leading_group(state.optimizers[0])
    say(
        f"{config.name}: {config.optimizer.name} in force: peak lr {group['initial_lr']:g}, weight "
        f"decay {group['weight_decay']:g}"
        + (f", max_lr {group['max_lr']:g}" if "max_lr" in group else "")
    )
    if distributed.rank() == 0:
        write_whole(config.folder / "config.yaml", to_yaml(config).encode())


def _read_origin(config: RunConfig) -> Checkpoint | None:
    """What the phase begins with, on ranks that did not examine it."""
    if config.start_from is not None:
        return read_checkpoint(config.start_from.checkpoint)
    if config.initial_weights is not None:
        return read_checkpoint(config.initial_weights.tile)
    return None


def _precision(config: RunConfig, device: Device) -> str:
    chosen = config.compute.precision
    return ("amp_bf16" if device == "cuda" else "fp32") if chosen == "auto" else chosen


def _composer(device: Device) -> str:
    """Composer's name of a device."""
    return "gpu" if device == "cuda" else "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _silence() -> None:
    """Silence what Composer and torch say about choices that are made on purpose here."""
    warnings.filterwarnings("ignore", module=r"composer\..*")
    warnings.filterwarnings("ignore", message=r".*barrier\(\).*")
    with contextlib.suppress(AttributeError):
        torch._C._set_warnAlways(False)
