"""One phase of pretraining: everything a YAML says. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tessera.data.batch_schedule import check_world_size, world_problems
from tessera.data.config import BatchConfig, DataConfig, SourceConfig
from tessera.evaluation.tasks.config import (
    NAME_TOKENS,
    PHRASE_TOKENS,
    fitting_distances,
    recall_problems,
)
from tessera.model.config import ModelConfig
from tessera.optim.config import OptimizerConfig, StableAdamW
from tessera.optim.schedules import Schedule, WarmupStableDecay, problems
from tessera.paths import SOURCE, RunPath, SourcePath, StorePath, cached, is_remote
from tessera.quantities import Duration
from tessera.training.start.inherited import fill


@dataclass(frozen=True, kw_only=True)
class StartFrom:
    """The checkpoint a phase begins with; its clock, schedule and data are fresh."""

    checkpoint: SourcePath
    """A run folder (its newest checkpoint), a checkpoint file, or a Hugging Face folder."""
    optimizer: bool = True
    """Carry the optimizer's moments over too, where the checkpoint has them."""

    @classmethod
    def parse(cls, text: object) -> "StartFrom":
        """A path alone is short for `checkpoint: path`."""
        if not isinstance(text, str) or not text:
            raise ValueError(f"expected the path of a checkpoint or a run folder; got {text!r}")
        return cls(checkpoint=SOURCE.parse(text))

    def __str__(self) -> str:
        return self.checkpoint


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """A larger model laid from tiles of a smaller one; the optimizer starts fresh."""

    tile: SourcePath
    """The smaller model: a run folder, a checkpoint file, or a Hugging Face folder."""
    mode: Literal["default", "published"] = "default"
    """`published` repeats the published code, which leaves the last norm untiled."""


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """Labelled texts, told apart by logistic regression on the model's frozen features."""

    train: str
    """A file (JSON lines, Parquet, CSV, TSV) or `hf://datasets/ORG/NAME/SUBSET/SPLIT`."""
    test: str
    """What is scored; its labels are those of `train`."""
    text: str = "text"
    """Column of the text."""
    label: str = "label"
    """Column of the class."""
    max_tokens: int = 256
    """Of a text: its first ones, and no more than `train_data.max_seq_len`."""
    limit: int = 1000
    """At most this many rows of each file, the first ones."""

    def __post_init__(self) -> None:
        found = []
        if self.max_tokens < 8:
            found.append(f"max_tokens must be at least 8; got {self.max_tokens}")
        if self.limit < 2:
            found.append(f"limit must be at least 2; got {self.limit}")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Cheap questions to the model while it is trained: the same texts, masks and names each time.

    Loss by position; the same targets with little context and with all; names recalled over
    distances; a linear probe. They leave no trace in training, and say what time they took.
    """

    interval: Duration | None = None
    """Time between them; null: with each evaluation (`evaluation.interval`)."""
    max_tokens: int = 200_000
    """Real tokens of each source, at most, for losses by position and context."""
    short: int = 512
    """Tokens of context that the whole context is compared with."""
    distances: tuple[int, ...] = (30, 100, 1000, 4000, 8000)
    """Tokens between a name and where it stood before; those that fit into `max_seq_len`."""
    names: int = 32
    """Names to recall, each at every distance; 0 for none."""
    linear_probe: LinearProbeConfig | None = None
    """Labelled files for a linear probe; null for none."""

    def __post_init__(self) -> None:
        found = recall_problems(self.distances, max(1, self.names))
        if self.interval is not None and self.interval.value < 1:
            found.append(f"interval must be positive; got '{self.interval}'")
        if self.max_tokens < 1:
            found.append(f"max_tokens must be at least 1; got {self.max_tokens}")
        if self.short < 8:
            found.append(f"short must be at least 8; got {self.short}")
        if self.names < 0:
            found.append(f"names must not be negative; got {self.names}")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Masked-LM loss and accuracy per source on the validation splits, masks fixed for all time.

    A causal phase (`train_data.objective`) has the causal loss on the same rows.
    """

    interval: Duration | None = None
    """Time between evaluations; null evaluates only at the end of the phase."""
    at_end: bool = True
    """Also evaluate when the phase is complete."""
    masking_rate: float = 0.15
    """Share of the ordinary tokens to predict, whatever training masks, so that phases compare."""
    max_tokens: int = 2_000_000
    """Real tokens of each source to evaluate on, at most."""
    sources: dict[str, SourceConfig] | None = None
    """Whose validation splits; those of `train_data` if null."""
    probes: ProbeConfig | None = None
    """What else is asked, at an interval of its own; null: nothing."""

    def __post_init__(self) -> None:
        found = []
        if self.interval is not None and self.interval.value < 1:
            found.append(f"interval must be positive; got '{self.interval}'")
        if not 0 < self.masking_rate < 1:
            found.append(
                f"masking_rate is a share of the tokens, in (0, 1); got {self.masking_rate}"
            )
        if self.max_tokens < 1:
            found.append(f"max_tokens must be at least 1; got {self.max_tokens}")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of training is saved, and what is kept of it."""

    interval: Duration | None = None
    """Time between checkpoints; null saves only at the end and when interrupted."""
    keep: int | Literal["all"] = "all"
    """How many of the newest to keep. Milestones and the start of a decay are kept besides."""
    milestones: tuple[Duration, ...] = ()
    """A checkpoint is saved at the first step past each of these, and never deleted."""
    remote: StorePath | None = None
    """An object store that a local `run_folder` is copied to as it grows, and resumed from."""
    upload_minutes: float = 30.0
    """How long the end of a run waits for an object store that takes nothing."""
    lease_seconds: float = 60.0
    """After how long a silence another node may take over a run in an object store."""

    def __post_init__(self) -> None:
        found = []
        if self.interval is not None and self.interval.value < 1:
            found.append(f"interval must be positive; got '{self.interval}'")
        if self.keep != "all" and self.keep < 1:
            found.append(f"keep must be at least 1, or 'all'; got {self.keep}")
        if not self.lease_seconds >= 2:
            found.append(f"lease_seconds must be at least 2; got {self.lease_seconds}")
        if not self.upload_minutes > 0:
            found.append(f"upload_minutes must be positive; got {self.upload_minutes}")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """Which steps torch's profiler watches, on rank 0, for `trace.json.gz` in the run folder."""

    after_steps: int = 20
    """Steps of this start before; the first ones compile, and read what is in no cache yet."""
    steps: int = 3
    """Steps that are watched."""

    def __post_init__(self) -> None:
        found = []
        if self.after_steps < 0:
            found.append(f"after_steps must not be negative; got {self.after_steps}")
        if self.steps < 1:
            found.append(f"steps must be at least 1; got {self.steps}")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the work is done. Nothing here changes what is computed, beyond rounding."""

    precision: Literal["auto", "fp32", "amp_bf16"] = "auto"
    """`auto`: bfloat16 autocast on a GPU, float32 on a CPU."""
    attention: Literal[
        "auto", "flash-attn-2", "flash-attn-3", "flash-attn-4", "torch-varlen", "flex", "sdpa"
    ] = "auto"
    """The attention backend; `tessera doctor` lists those that serve on this machine."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile each layer; `auto`: on a GPU only."""
    activation_checkpointing: bool | tuple[int, ...] = False
    """Recompute layers (all, or these) in the backward pass: less memory, a third more time."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp` spreads weights, gradients and optimizer state over the ranks."""
    threads: int | None = None
    """CPU threads of each rank; null: OMP_NUM_THREADS, or the cores divided among the ranks."""
    timeout_minutes: float = 10.0
    """How long a rank waits for the others before it gives up."""
    trace: TraceConfig | None = None
    """Where the time of some steps goes; these steps are slower."""

    def __post_init__(self) -> None:
        found = []
        if self.threads is not None and self.threads < 1:
            found.append(f"threads must be at least 1, or null; got {self.threads}")
        if not self.timeout_minutes > 0:
            found.append(f"timeout_minutes must be positive; got {self.timeout_minutes}")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, beside `metrics.jsonl`; trouble with it never stops training.

    Its variables go first, as for one launch: `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_ENTITY`,
    `WANDB_RUN_GROUP`, `WANDB_TAGS`, `WANDB_NAME`, `WANDB_DIR`, `WANDB_RUN_ID`.
    """

    project: str | None = None
    """Where the run is listed; null: W&B's own name for what has none."""
    entity: str | None = None
    """User or team; null: that of the account."""
    group: str | None = None
    """Such as the phases of one model."""
    tags: tuple[str, ...] = ()
    """Words to find the run by."""

    mode: Literal["online", "offline", "disabled"] = "online"
    """`offline` writes under the run folder, for `wandb sync`; `disabled` writes nothing."""

    def __post_init__(self) -> None:
        found = [
            f"{key}: is a name, not an address; W&B's server and key come from WANDB_BASE_URL and "
            "WANDB_API_KEY"
            for key in ("project", "entity", "group")
            if set(getattr(self, key) or "") & set("/\\#?%:@")
        ]
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where numbers go beside `metrics.jsonl`, which is always written."""

    console_seconds: float = 10.0
    """Time between progress lines on a terminal; in a log that is none, six times that."""
    wandb: WandbConfig | None = None
    tensorboard: bool = False
    """Event files under the run folder; under `TENSORBOARD_LOGGING_DIR` if that is set."""

    def __post_init__(self) -> None:
        if not self.console_seconds >= 0:
            raise ValueError(f"console_seconds must not be negative; got {self.console_seconds}")


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """What to do when a loss or a gradient leaves its usual range."""

    window_steps: int = 200
    """The usual range is that of so many steps before; a quarter of them judge nothing yet."""
    threshold: float = 8.0
    """A loss is a spike if it is more than so many deviations above the median of the window.

    A deviation is 1.4826 times the median absolute deviation, which is the standard deviation of
    normally distributed losses, but at least 1 % of the median.
    """
    action: Literal["record", "skip", "stop"] = "record"
    """`skip` leaves the weights as they were; `stop` ends the run with instructions."""
    non_finite: Literal["skip", "stop"] = "skip"
    """A step whose loss or gradient is not finite never changes the weights."""
    patience_steps: int = 10
    """So many steps skipped in a row stop the run."""

    def __post_init__(self) -> None:
        found = []
        if self.window_steps < 8:
            found.append(f"window_steps must be at least 8; got {self.window_steps}")
        if not self.threshold > 0:
            found.append(f"threshold must be positive; got {self.threshold}")
        if self.patience_steps < 1:
            found.append(f"patience_steps must be at least 1; got {self.patience_steps}")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One phase of training, from one YAML."""

    NAMED: ClassVar[tuple[str, ...]] = ("train_data.sources", "evaluation.sources")
    KNOWN_AS: ClassVar[dict[str, str]] = {
        "learning_rate": "optimizer.lr",
        "max_lr": "optimizer.lr",
        "betas": "optimizer.betas",
        "max_grad_norm": "optimizer.clip_norm",
        "warmup_steps": "schedule.warmup, such as 1000ba or 3e9tok",
        "warmup_ratio": "schedule.warmup, such as 1000ba or 3e9tok",
        "warmup_tokens": "schedule.warmup, such as 1000ba or 3e9tok",
        "t_warmup": "schedule.warmup, such as 1000ba or 3e9tok",
        "min_lr": "schedule.floor, as a fraction of optimizer.lr",
        "alpha_f": "schedule.floor, as a fraction of optimizer.lr",
        "optim": "optimizer.name",
        "adam_beta1": "optimizer.betas",
        "adam_beta2": "optimizer.betas",
        "adam_epsilon": "optimizer.eps",
        "lr_scheduler_type": "schedule.name",
        "scheduler": "schedule.name",
        "max_steps": "duration, such as 10000ba, or in tokens, 3e9tok",
        "max_duration": "duration, such as 10000ba, or in tokens, 3e9tok",
        "num_train_epochs": "duration in tokens; `tessera check` says how many epochs that makes",
        "epochs": "duration in tokens; `tessera check` says how many epochs that makes",
        "micro_batch_size": "batch.microbatch_rows, in rows of train_data.row_tokens",
        "device_train_microbatch_size": "batch.microbatch_rows, in rows of train_data.row_tokens",
        "per_device_train_batch_size": "batch.microbatch_rows, in rows of train_data.row_tokens",
        "global_train_batch_size": "batch.rows, over all GPUs",
        "batch_size": "batch.rows, over all GPUs",
        "gradient_accumulation_steps": "batch.rows / (GPUs * batch.microbatch_rows)",
        "max_length": "train_data.max_seq_len",
        "max_seq_length": "train_data.max_seq_len",
        "mlm_probability": "train_data.masking.rate",
        "objective": "train_data.objective: masked or causal",
        "causal": "train_data.objective: causal",
        "mlm": "train_data.objective: masked or causal",
        "is_causal": "train_data.objective: causal",
        "output_dir": "run_folder",
        "save_folder": "run_folder",
        "save_steps": "checkpoints.interval, such as 1000ba",
        "save_interval": "checkpoints.interval, such as 1000ba",
        "save_strategy": "checkpoints.interval, such as 1000ba",
        "save_total_limit": "checkpoints.keep",
        "eval_steps": "evaluation.interval, such as 1000ba",
        "eval_interval": "evaluation.interval, such as 1000ba",
        "eval_strategy": "evaluation.interval, such as 1000ba",
        "logging_steps": "logging.console_seconds, and metrics.jsonl has every step",
        "bf16": "compute.precision: amp_bf16",
        "fp16": "compute.precision: amp_bf16",
        "gradient_checkpointing": "compute.activation_checkpointing",
        "torch_compile": "compute.compile",
        "fsdp": "compute.sharding: fsdp",
        "dataloader_num_workers": "train_data.workers",
        "num_workers": "train_data.workers",
        "resume_from_checkpoint": "nothing: the same command resumes",
        "load_path": "start_from",
        "model_name_or_path": "start_from",
        "tokenizer_name": "tokenizer",
        "layers": "model.num_hidden_layers",
        "num_layers": "model.num_hidden_layers",
        "n_layers": "model.num_hidden_layers",
        "heads": "model.num_attention_heads",
        "num_heads": "model.num_attention_heads",
        "n_heads": "model.num_attention_heads",
        "dim": "model.hidden_size",
        "hidden_dim": "model.hidden_size",
        "n_embd": "model.hidden_size",
        "d_model": "model.hidden_size",
        "ffn_dim": "model.intermediate_size",
        "sliding_window": "model.local_attention",
        "rope_theta": "model.global_rope_theta and model.local_rope_theta",
        "hidden_dropout_prob": "model.attention_output_dropout, the only dropout there is",
        "attention_dropout": "model.attention_output_dropout, the only dropout there is",
        "max_position_embeddings": "train_data.max_seq_len",
        "block_size": "train_data.max_seq_len",
        "dataset": "train_data.sources, shards by name (data_prep/tokenize.py makes them)",
        "dataset_name": "train_data.sources, shards by name (data_prep/tokenize.py makes them)",
        "data_path": "train_data.sources, shards by name (data_prep/tokenize.py makes them)",
        "train_file": "train_data.sources, shards by name (data_prep/tokenize.py makes them)",
        "loggers": "logging",
        "report_to": "logging",
    }
    """What Trainer's, Composer's and other users call these keys."""

    run_folder: RunPath
    """Where the phase keeps its resolved config, metrics and checkpoints; one phase each."""
    run_name: str | None = None
    """For people and loggers; null takes the last two parts of `run_folder`."""
    seed: int = 17
    """Initial weights, order of documents, masks and dropout."""
    duration: Duration
    """Length of the phase, almost always in real tokens."""
    model: ModelConfig
    """Of `start_from` if left out, but for what is named: thetas, dropout."""
    tokenizer: SourcePath
    """The folder of the tokenizer the data was prepared with; of `start_from` if left out."""
    train_data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig = field(default_factory=StableAdamW)
    schedule: Schedule = field(default_factory=WarmupStableDecay)
    z_loss: float = 0.0
    """Adds this times log(sum(exp(logits)))**2 to a predicted token's loss, in training alone.

    1e-4 keeps the logits of a long run from drifting (https://arxiv.org/abs/2204.02311, section 5);
    the published recipe does without.
    """
    start_from: StartFrom | None = None
    initial_weights: InitialWeights | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    watchdog_minutes: float | None = 30.0
    """Print the stacks of all threads when no step finishes for so long; null: never.

    With several ranks, sooner than `compute.timeout_minutes`, after which the others give up.
    """

    @classmethod
    def complete(cls, plain: Any) -> Any:
        """The plain configuration with what it leaves to `start_from`."""
        return fill(plain)[0]

    def __post_init__(self) -> None:
        found = problems(self.schedule, self.duration)
        if not self.run_folder.strip():
            found.append("run_folder is empty: name the folder this phase writes to")
        if is_remote(self.run_folder) and self.checkpoints.remote is not None:
            found.append(
                "checkpoints.remote: run_folder is in an object store already; name one of them"
            )
        if self.duration.value < 1:
            found.append(f"duration must be positive; got '{self.duration}'")
        if not 0 <= self.seed < 2**32:
            found.append(f"seed must be from 0 to 2**32 - 1; got {self.seed}")
        if not self.z_loss >= 0:
            found.append(f"z_loss must not be negative; got {self.z_loss}")
        warmup = self.batch.warmup
        if warmup is not None:
            found += self._longer("batch.warmup.over", warmup.over)
        masking = self.train_data.masking
        if masking.over is not None:
            found += self._longer("train_data.masking.over", masking.over)
        for milestone in self.checkpoints.milestones:
            if milestone.unit != self.duration.unit:
                found.append(
                    f"checkpoints.milestones: '{milestone}' cannot be compared with duration "
                    f"'{self.duration}'"
                )
        found += self._probe_problems()
        layers, chosen = self.model.num_hidden_layers, self.compute.activation_checkpointing
        beyond = [] if isinstance(chosen, bool) else [n for n in chosen if not 0 <= n < layers]
        if beyond and layers > 0:
            found.append(
                f"compute.activation_checkpointing: names layers {beyond}; the model's {layers} "
                f"are numbered 0 to {layers - 1}"
            )
        if self.start_from is not None and self.initial_weights is not None:
            found.append(
                "start_from and initial_weights both say where the weights come from: keep one"
            )
        if self.start_from is not None and self._is_own(self.start_from.checkpoint):
            found.append(
                f"start_from: '{self.start_from.checkpoint}' is this phase's own run_folder. An "
                "interrupted phase resumes by itself; a new phase needs a run_folder of its own"
            )
        if self.initial_weights is not None and self._is_own(self.initial_weights.tile):
            found.append("initial_weights.tile: this phase cannot be laid from its own checkpoints")
        if self.watchdog_minutes is not None and not self.watchdog_minutes > 0:
            found.append(f"watchdog_minutes must be positive, or null; got {self.watchdog_minutes}")
        if found:
            raise ValueError("\n".join(found))

    @property
    def folder(self) -> Path:
        """The run folder on this machine; of one in an object store, a cache that may vanish."""
        return cached("runs", self.run_folder) if self.is_cached else Path(self.run_folder)

    @property
    def is_cached(self) -> bool:
        """Whether the run folder is in an object store, and `folder` only a cache of it."""
        return is_remote(self.run_folder)

    @property
    def remote(self) -> str | None:
        """The object store that the run folder lives in, or is copied to."""
        return self.run_folder if self.is_cached else self.checkpoints.remote

    @property
    def name(self) -> str:
        """The run's name for people and loggers."""
        path = self.run_folder.partition("://")[2] if self.is_cached else self.run_folder
        parts = [part for part in Path(path).parts if part not in {"/", ".", "runs"}]
        return self.run_name or "-".join(parts[-2:]) or "run"

    def world_problems(self, world_size: int) -> list[str]:
        """What keeps this configuration from running on so many ranks; empty if nothing does."""
        data = self.train_data
        return world_problems(
            self.batch, lanes=data.lanes, workers=data.workers, world_size=world_size
        )

    def check_world(self, world_size: int) -> None:
        """Raise ConfigError with all `world_problems`, if there are any."""
        data = self.train_data
        check_world_size(
            self.batch,
            lanes=data.lanes,
            workers=data.workers,
            world_size=world_size,
            name=self.name,
        )

    def _probe_problems(self) -> list[str]:
        probes = self.evaluation.probes
        if probes is None:
            return []
        if self.train_data.causal:
            return [
                "evaluation.probes: ask for masked tokens, which a phase whose "
                "train_data.objective is causal has none of; set them to null in this phase"
            ]
        found = []
        interval = probes.interval or self.evaluation.interval
        if interval is None and not self.evaluation.at_end:
            found.append("evaluation.probes.interval: missing, so nothing would ever be asked")
        if probes.names:
            try:
                fitting_distances(
                    probes.distances,
                    max_seq_len=self.train_data.max_seq_len,
                    name_tokens=NAME_TOKENS,
                    phrase_tokens=PHRASE_TOKENS,
                )
            except ValueError as error:
                found.append(f"evaluation.probes.{error}; name others, or set names to 0")
        return found

    def _longer(self, key: str, over: Duration) -> list[str]:
        if over.unit == self.duration.unit and over.value > self.duration.value:
            return [f"{key}: '{over}' is longer than duration '{self.duration}'"]
        return []

    def _is_own(self, path: str) -> bool:
        if is_remote(path):
            return self.remote in (path, path.partition("/checkpoints")[0])
        own = Path(self.run_folder).resolve()
        other = Path(path).resolve()
        return other == own or own / "checkpoints" in [other, *other.parents]
