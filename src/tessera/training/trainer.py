"""The pieces of a run put together on Composer. Nothing trains yet."""

import contextlib
import os
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import State
from composer.utils import FSDP2Config, ParallelismConfig, dist

from tessera.checkpoints.reader import read_checkpoint
from tessera.config import ConfigError, to_yaml
from tessera.data.batch_schedule import data_rank
from tessera.data.loader import Loader, LoaderState
from tessera.data.validation import evaluation_batches
from tessera.files import write_whole
from tessera.model.attention.backends import choose
from tessera.model.flops import matmul_rate
from tessera.model.initialization import tile_weights
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.optim.optimizers import build_optimizer, remember_peak
from tessera.quantities import short_number
from tessera.tokenizer import Tokenizer, load_tokenizer
from tessera.training import distributed, resume
from tessera.training.callbacks.checkpointer import Checkpoints, RunRecord
from tessera.training.callbacks.compiling import RecompileWatch
from tessera.training.callbacks.evaluator import Batches, Evaluation
from tessera.training.callbacks.spikes import Guard
from tessera.training.callbacks.train_step import Clock, Sink, Stepping
from tessera.training.callbacks.watchdog import Watchdog
from tessera.training.config import RunConfig
from tessera.training.console import ProgressLines, say, warn
from tessera.training.loggers import open_loggers
from tessera.training.metrics import MetricsFile
from tessera.training.mlm import MaskedLanguageModel, train_data_spec
from tessera.training.run import Held, Run
from tessera.training.saved import Saved, read, resumable


def build(config: RunConfig, held: Held | None) -> Run:
    """Assemble a phase. Every rank calls this; rank 0 holds the run folder.

    Raises:
        ValueError: something does not fit, with the key or file and the way out.
    """
    run = Run(config)
    run.stop.install()
    run.closing.append(run.stop.uninstall)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.compute.sharding == "fsdp" and device == "cpu" and torch.__version__ < "2.8":
        raise ConfigError(
            "compute.sharding: fsdp without a GPU needs torch 2.8 or newer (this is "
            f"{torch.__version__}): gloo would sum gradients instead of averaging them"
        )
    if config.compute.threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            config.compute.threads or _cores() // distributed.local_world_size() or 1
        )
    _quiet()
    if distributed.world_size() > 1:
        dist.initialize_dist(_composer(device), config.compute.timeout_minutes * 60)
    if held is not None:
        run.closing.append(held.lock.release)
        run.stop.on_request = held.lock.say_stopping

    saved = _same_everywhere(held)
    if saved is not None and saved.done(config.duration):
        run.close()
        return Run(config)
    changes = resumable(config, saved) if saved is not None else []

    tokenizer = load_tokenizer(config.tokenizer)
    loader = build_loader(config, tokenizer, saved)
    run.closing.append(loader.close)
    encoder = build_encoder(config, device)
    model = MaskedLanguageModel(encoder, config.seed)
    optimizer = build_optimizer(
        config.optimizer,
        model.named_parameters(),
        device,
        sharded=config.compute.sharding == "fsdp",
    )
    remember_peak(optimizer)

    sinks: list[Sink] = []
    stepping = Stepping(
        config=config,
        model=model,
        optimizer=optimizer,
        judge=Guard(config.spikes),
        stop_signal=run.asked_to_stop,
        sinks=sinks,
        peak_flops=matmul_rate(torch.device(device), _matrix_dtype(config, device), seconds=0.3),
    )
    if saved is not None:
        known = vars(stepping.clock).keys() & saved.progress.keys()
        stepping.clock = Clock(**{key: saved.progress[key] for key in known})
        stepping.judge.restore(saved.progress["spikes"])
    sync = open_sinks(run, sinks, after_step=stepping.clock.steps)
    checkpoints = Checkpoints(config=config, stepping=stepping, say=warn, before_save=sync)
    run.preempted = lambda: checkpoints.preempted

    evaluation = Evaluation(
        config=config.evaluation,
        stepping=stepping,
        model=model,
        sources=evaluation_sources(config, tokenizer),
        sinks=sinks,
        owed=saved is not None and saved.progress["evaluation_owed"],
    )
    callbacks: list[Any] = [
        stepping,
        *([RecompileWatch(warn)] if compiles(config, device) else []),
        evaluation,
        RunRecord(config, tokenizer, loader, stepping, lambda: evaluation.owed),
        checkpoints,
    ]
    if config.watchdog_minutes is not None:
        watchdog = Watchdog(Path(config.run_folder), config.watchdog_minutes)
        run.closing.append(watchdog.disarm)
        callbacks.append(watchdog)
    run.trainer = Trainer(
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
        parallelism_config=parallelism(config, encoder),
        progress_bar=False,
        dist_timeout=config.compute.timeout_minutes * 60,
    )
    _begin(run.trainer.state, run.trainer.logger, config, saved, changes)
    if distributed.rank() == 0:
        write_whole(Path(config.run_folder) / "config.yaml", to_yaml(config).encode())
    return run


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


def build_encoder(config: RunConfig, device: str) -> ModernBertForMaskedLM:
    """The model with its first weights; those of a checkpoint come later."""
    backend = choose(
        config.compute.attention,
        torch.device(device),
        _matrix_dtype(config, device),
        config.model.head_size,
    )
    say(f"{config.name}: attention by {backend}")
    encoder = ModernBertForMaskedLM(config.model, attention=backend, z_loss=config.z_loss)
    encoder.initialize(config.seed)
    tiles = config.initial_weights
    if tiles is not None:
        small = read_checkpoint(tiles.tile)
        encoder.load_state_dict(
            tile_weights(
                small.weights,
                small.model_config,
                config.model,
                "published" if tiles.mode == "published" else "aligned",
            )
        )
    encoder.checkpoint_layers(config.compute.activation_checkpointing)
    if compiles(config, device):
        encoder.compile_layers()
    return encoder


def compiles(config: RunConfig, device: str) -> bool:
    """Whether torch compiles the model."""
    chosen = config.compute.compile
    return device == "cuda" if chosen == "auto" else chosen


def parallelism(config: RunConfig, encoder: ModernBertForMaskedLM) -> ParallelismConfig | None:
    """Composer's configuration of sharding, layer by layer; None for plain DDP."""
    if config.compute.sharding == "none":
        return None
    layers = set(encoder.model.layers)
    # Composer asks its model's direct children which of their modules to shard one by one.
    object.__setattr__(encoder, "fsdp_wrap_fn", lambda module: module in layers)
    return ParallelismConfig(fsdp2=FSDP2Config(state_dict_type="full"))


def evaluation_sources(config: RunConfig, tokenizer: Tokenizer) -> dict[str, Batches]:
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
                evaluation_batches,
                data,
                name,
                tokenizer,
                vocab_size=config.model.vocab_size,
                masking_rate=config.evaluation.masking_rate,
                max_tokens=config.evaluation.max_tokens,
                seed=config.seed,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
            )
            next(iter(found[name]()), None)
    return found


def open_sinks(run: Run, sinks: list[Sink], *, after_step: int) -> Any:
    """Open what takes records, on rank 0; returns what brings them to the disk."""
    if distributed.rank() != 0:
        return lambda: None
    config = run.config
    metrics = MetricsFile(Path(config.run_folder), after_step=after_step)
    run.closing.append(metrics.close)
    loggers = open_loggers(config, after_step=after_step)
    run.closing.extend(logger.close for logger in loggers)
    progress = ProgressLines(
        config.name,
        config.duration,
        every_seconds=config.logging.console_seconds,
        done=0,
    )
    sinks += [metrics.write, progress, *loggers]
    return metrics.sync


def _same_everywhere(held: Held | None) -> Saved | None:
    """What rank 0 found to resume from, read by every rank."""
    own = held.saved if held is not None else None
    path = distributed.from_first(own.path if own is not None else None)
    return own if own is not None or path is None else read(path)


def _begin(
    state: State,
    logger: Any,
    config: RunConfig,
    saved: Saved | None,
    changes: list[str],
) -> None:
    """Load what this phase continues from, and say so."""
    numbers = sum(p.numel() for p in state.model.parameters())
    kind = "GPU" if torch.cuda.is_available() else "CPU"
    say(
        f"{config.name}: {short_number(numbers)} parameters on {distributed.world_size()} x "
        f"{kind} for {short_number(config.duration.value)} "
        f"{config.duration.unit}, in {config.run_folder}"
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
    elif config.start_from is not None:
        checkpoint = read_checkpoint(config.start_from.checkpoint)
        carried = resume.start(state, logger, checkpoint, optimizer=config.start_from.optimizer)
        say(f"{config.name}: starts from {checkpoint.path} ({carried})")
    group = max(state.optimizers[0].param_groups, key=lambda group: group["weight_decay"])
    say(
        f"{config.name}: {config.optimizer.name} in force: peak lr {group['initial_lr']:g}, weight "
        f"decay {group['weight_decay']:g}"
        + (f", max_lr {group['max_lr']:g}" if "max_lr" in group else "")
    )


def _precision(config: RunConfig, device: str) -> str:
    chosen = config.compute.precision
    return ("amp_bf16" if device == "cuda" else "fp32") if chosen == "auto" else chosen


def _matrix_dtype(config: RunConfig, device: str) -> torch.dtype:
    return torch.bfloat16 if _precision(config, device) == "amp_bf16" else torch.float32


def _composer(device: str) -> str:
    return "gpu" if device == "cuda" else "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quiet() -> None:
    """Silence what Composer and torch say about choices that are made on purpose here."""
    warnings.filterwarnings("ignore", module=r"composer\..*")
    warnings.filterwarnings("ignore", message=r".*barrier\(\).*")
    with contextlib.suppress(AttributeError):
        torch._C._set_warnAlways(False)
