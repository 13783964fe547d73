"""A first YAML for one's own shards: sizes that suit the text there is and the machine at hand."""

from dataclasses import dataclass
from pathlib import Path

from tessera.config import ConfigError, decode
from tessera.data.config import SourceConfig
from tessera.data.pipeline.pieces import Cut
from tessera.data.sources.mds_shard import INDEX
from tessera.data.sources.source import open_source
from tessera.data.supply import supply_of
from tessera.files import JsonObject
from tessera.model.config import ModelConfig
from tessera.planning.gpus import Gpu
from tessera.planning.memory import largest_microbatch
from tessera.planning.shapes import PUBLISHED
from tessera.quantities import short_number, so_many
from tessera.tokenizer import load_tokenizer
from tessera.training.config import RunConfig
from tessera.training.preflight.sources import MOST_EPOCHS

_LANES = 48
_STEPS = 2000
"""A phase has about so many steps at least; large batches of little text learn little."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, and how it is fed."""

    model: ModelConfig
    lr: float
    row_tokens: int
    most_rows: int
    """Of a batch."""
    least_tokens: float
    """With less text, a smaller model is advised."""


SIZES = {
    "tiny": Size(
        model=ModelConfig(
            hidden_size=192,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=6,
            local_attention=64,
        ),
        lr=1.5e-3,
        row_tokens=1024,
        most_rows=96,
        least_tokens=0,
    ),
    "base": Size(
        model=PUBLISHED["ModernBERT-base"],
        lr=8e-4,
        row_tokens=8192,
        most_rows=576,
        least_tokens=2e8,
    ),
    "large": Size(
        model=PUBLISHED["ModernBERT-large"],
        lr=5e-4,
        row_tokens=8192,
        most_rows=576,
        least_tokens=1e10,
    ),
}


def sources_in(folder: Path) -> dict[str, Path]:
    """Finished sources of a folder that data_prep/tokenize.py wrote: name and place.

    Raises:
        ConfigError: there is none.
    """
    found = {path.parents[1].name: path.parents[1] for path in folder.glob(f"*/train/{INDEX}")}
    if (folder / "train" / INDEX).is_file():
        found[folder.name] = folder
    if not found:
        raise ConfigError(
            f"{folder}: holds no finished shards (NAME/train/{INDEX}); prepare text first: "
            f"python data_prep/tokenize.py NAME=TEXT --out {folder}"
        )
    return dict(sorted(found.items()))


def first_yaml(
    folder: Path,
    tokenizer_path: str,
    *,
    size: str | None,
    gpu: Gpu | None,
    world_size: int,
    run_folder: str,
) -> tuple[JsonObject, list[str]]:
    """The YAML, and a sentence for each choice.

    Args:
        folder: what data_prep/tokenize.py wrote.
        tokenizer_path: what it was prepared with.
        size: a name of `SIZES`; None chooses by the text there is.
        gpu: what it is to run on; None for a CPU.
        world_size: GPUs in all.
        run_folder: where the phase is to write.

    Raises:
        ValueError: shards or tokenizer cannot be read, or the ranks do not divide the lanes.
    """
    places = sources_in(folder)
    tokenizer = load_tokenizer(tokenizer_path, quiet=True)
    if _LANES % world_size:
        raise ConfigError(f"--world-size {world_size}: {_LANES} lanes do not divide among them")
    cut, frame = Cut(1024, split=True), (tokenizer.cls_id, tokenizer.sep_id)
    tokens: dict[str, float] = {}
    sources: JsonObject = {}
    for name, place in places.items():
        validation = (place / "validation" / INDEX).is_file()
        source = SourceConfig(
            local=str(place), validation_split="validation" if validation else None
        )
        documents = open_source(name, source, source.split, None)
        tokens[name] = supply_of(name, source, documents, cut, frame).tokens or 0.0
        sources[name] = {"local": str(place), "weight": round(max(tokens[name], 1.0))}
        if not validation:
            sources[name]["validation_split"] = None
    total = sum(tokens.values())
    if size is None:
        size = "base" if total >= SIZES["base"].least_tokens else "tiny"
    chosen = SIZES[size]
    duration = _rounded_down(MOST_EPOCHS * total)
    rows = min(chosen.most_rows, max(world_size, int(duration / _STEPS / chosen.row_tokens)))
    rows = -(-rows // world_size) * world_size
    plain: JsonObject = {
        "run_folder": run_folder,
        "duration": f"{duration}tok",
        "tokenizer": tokenizer_path,
        "model": {
            "vocab_size": -(-tokenizer.size // 64) * 64,
            **{
                key: getattr(chosen.model, key)
                for key in (
                    *("hidden_size", "intermediate_size", "num_hidden_layers"),
                    *("num_attention_heads", "local_attention"),
                )
            },
            "global_rope_theta": 10_000,
        },
        "train_data": {
            "sources": sources,
            "max_seq_len": 1024,
            "row_tokens": chosen.row_tokens,
            "lanes": _LANES,
        },
        "batch": {"rows": rows, "microbatch_rows": 1},
        "optimizer": {"name": "stable_adamw", "lr": chosen.lr, "weight_decay": 1e-5},
        "schedule": {
            "name": "warmup_stable_decay",
            "warmup": f"{duration // 50}tok",
            "decay": f"{duration // 10}tok",
            "decay_shape": "one_minus_sqrt",
        },
        "evaluation": {"interval": f"{max(1, duration // 20)}tok"},
        "checkpoints": {"interval": f"{max(1, duration // 20)}tok", "keep": 3},
    }
    config = decode(RunConfig, plain, "tessera init")
    fits = rows // world_size if gpu is None else largest_microbatch(config, world_size, gpu)
    if not fits:
        raise ConfigError(
            f"--gpu: not one row of {chosen.row_tokens:,} tokens of the {size} model fits; take a "
            "smaller --size"
        )
    plain["batch"]["microbatch_rows"] = min(fits, 8) if gpu is None else fits
    decode(RunConfig, plain, "tessera init")
    reasons = [
        f"{short_number(total)} tokens in {so_many(len(tokens), 'source')}, read {MOST_EPOCHS} "
        "times, about as good as new text (https://arxiv.org/abs/2305.16264); every source is read "
        "as often",
        _about_size(size, total),
        f"{so_many(rows, 'row')} a batch, "
        f"{short_number(duration / rows / chosen.row_tokens)} steps; "
        f"{so_many(plain['batch']['microbatch_rows'], 'row')} at a time"
        + (f" on a {gpu.title}, by formula" if gpu is not None else ", for a CPU"),
    ]
    return plain, reasons


def _about_size(size: str, total: float) -> str:
    """Whether so many tokens are enough for a model, and what to do if they are not."""
    least = SIZES[size].least_tokens
    if least:
        enough = "" if total >= least else ", of which there are fewer"
        return f"model {size}: advised from {short_number(least)} tokens{enough}"
    least = min(one.least_tokens for one in SIZES.values() if one.least_tokens)
    if total >= least:
        return f"model {size}: as asked; there is text enough for a larger one"
    return (
        f"model {size}: to try things out; {short_number(total)} tokens are too few to pretrain a "
        f"model from nothing ({short_number(least)} are advised for base). Anneal a released one "
        "on them: yamls/anneal.yaml"
    )


def _rounded_down(value: float) -> int:
    """The number with three digits and zeros."""
    unit = 10 ** max(0, len(str(int(value))) - 3)
    return int(value) // unit * unit
