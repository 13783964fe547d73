"""What the benchmarks train: documents, and one step of ours and of transformers.

Legend: `T` token slots, `M` masked tokens.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from models import MASKED_SHARE
from torch import Tensor, nn
from torch.optim import Optimizer

from tessera.batch import IGNORED
from tessera.model.config import ModelConfig
from tessera.model.dropout import dropout_keys
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.optim.config import AdamW, StableAdamW
from tessera.optim.optimizers import build_optimizer


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Documents of one step, whichever way they are laid out."""

    documents: list[Tensor]
    """(n,) int64 ids each."""
    labels: list[Tensor]
    """(n,) int64 each: the original token where it is predicted, else `IGNORED`."""
    slots: int
    """T: token slots of the packed rows."""
    max_length: int

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return sum(len(document) for document in self.documents)

    @property
    def attended_tokens(self) -> float:
        """Length of a token's document, averaged over tokens."""
        return sum(len(document) ** 2 for document in self.documents) / self.tokens


Lengths = Literal["log-normal", "uniform", "fixed", "shards"]


@dataclass(frozen=True)
class StoredLengths:
    """How often segments of each length occur where shards are read."""

    values: Tensor
    """(k,) int64, tokens with [CLS] and [SEP]."""
    counts: Tensor
    """(k,) float."""


def stored_lengths(config_path: str, max_length: int) -> StoredLengths:
    """Those of a phase's training sources, mixed by their shares, cut at `max_length`.

    Raises:
        ConfigError: the YAML is wrong, or no shards of its sources are here.
    """
    from tessera.config import ConfigError, load
    from tessera.data.pipeline.pieces import Cut
    from tessera.data.supply import readings
    from tessera.training.config import RunConfig

    config = load(RunConfig, config_path)
    found = torch.zeros(max_length + 1)
    for reading in readings(config.train_data, config.batch, config.duration, None, {}):
        if reading.supply.lengths is None or not reading.supply.tokens:
            raise ConfigError(f"{config_path}: its shards are not here; prepare them first")
        share = reading.share / reading.supply.tokens
        for values, counts in Cut(max_length, split=True).segments(reading.supply.lengths.values):
            each = torch.as_tensor(counts * reading.supply.lengths.documents * share)
            found.index_add_(0, torch.as_tensor(values), each.float())
    there = found.nonzero().squeeze(1)
    return StoredLengths(there, found[there])


def draw_workload(
    *,
    vocab_size: int,
    slots: int,
    max_length: int,
    seed: int,
    lengths: Lengths = "log-normal",
    min_length: int = 8,
    stored: StoredLengths | None = None,
) -> Workload:
    """Documents that fill `slots`, the last one cut.

    Their lengths are log-normal around a quarter of `max_length`, uniform between the two bounds,
    all of `max_length`, or drawn from the `stored` ones, cut at `max_length` already. Each step
    gets other documents, so that nothing can be specialised to them.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    left = slots
    while left >= 8:
        length = max_length
        if lengths == "log-normal":
            spread = torch.randn((), generator=generator).item()
            length = int(math.exp(math.log(max_length / 4) + 0.9 * spread))
        elif lengths == "uniform":
            length = int(torch.randint(min_length, max_length + 1, (), generator=generator))
        elif stored is not None:
            length = int(stored.values[torch.multinomial(stored.counts, 1, generator=generator)])
        chosen.append(min(max(length, min_length), max_length, left))
        left -= chosen[-1]
    documents, labels = [], []
    for length in chosen:
        ids = torch.randint(5, vocab_size, (length,), generator=generator)
        masked = torch.rand(length, generator=generator) < MASKED_SHARE
        documents.append(ids.masked_fill(masked, 4))
        labels.append(ids.masked_fill(~masked, IGNORED))
    return Workload(documents=documents, labels=labels, slots=slots, max_length=max_length)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model with its optimizer, and how it takes a step."""

    name: str
    step: Callable[[Workload], None]
    model: nn.Module
    slots: Callable[[Workload], int]
    """Token slots that a step computes, padding included."""


def tessera(
    config: ModelConfig,
    device: torch.device,
    *,
    attention: str = "auto",
    compiled: bool = False,
    checkpointed: bool = False,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Variant:
    """Ours: one packed sequence, the head on masked tokens, dropout as in training.

    Args:
        config: the shape.
        device: where.
        attention: a backend, or "auto".
        compiled: whether torch compiles the layers.
        checkpointed: whether layers are computed again in the backward pass.
        wrap: what a step calls in the model's place, such as DistributedDataParallel of it.
    """
    model = ModernBertForMaskedLM(config, attention=attention).to(device).train()
    model.initialize(0)
    model.checkpoint_layers(checkpointed)
    if compiled:
        model.compile_layers()
    optimizer = _optimizer(model, device)
    called = wrap(model)
    steps = 0

    def step(workload: Workload) -> None:
        nonlocal steps
        steps += 1
        ids, ends, positions, labels = (
            x.to(device, non_blocking=True) for x in _packed(workload, device)
        )
        rows = torch.full((1,), steps, device=device)
        with _autocast(device):
            out = called(
                ids,
                cu_seqlens=ends,
                max_seqlen=workload.max_length,
                masked_positions=positions,
                masked_labels=labels,
                dropout_keys=dropout_keys(0, rows, workload.slots),
            )
        (out.loss_sum / out.masked_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    name = f"tessera, {attention}" + (", compiled" if compiled else "")
    name += ", checkpointed" if checkpointed else ""
    return Variant(name=name, step=step, model=called, slots=lambda workload: workload.slots)


def _packed(workload: Workload, device: torch.device) -> list[Tensor]:
    """Ids (T,), segment ends, masked positions (M,) and their labels; T and M repeat."""
    slots = workload.slots
    ids = torch.full((slots,), 3)
    ids[: workload.tokens] = torch.cat(workload.documents)
    lengths = [len(document) for document in workload.documents]
    padding = [slots - workload.tokens] if workload.tokens < slots else []
    ends = torch.tensor([0, *lengths, *padding]).cumsum(0).to(torch.int32)
    labels = torch.cat(workload.labels)
    found = (labels != IGNORED).nonzero().squeeze(1)
    usual = MASKED_SHARE * slots + 4 * math.sqrt(slots)
    positions = torch.zeros(64 * math.ceil(usual / 64), dtype=torch.int64)
    positions[: len(found)] = found
    predicted = torch.full_like(positions, IGNORED)
    predicted[: len(found)] = labels[found]
    batch = [ids, ends, positions, predicted]
    return [x.pin_memory() for x in batch] if device.type == "cuda" else batch


def transformers_variant(
    config: ModelConfig,
    device: torch.device,
    *,
    implementation: str = "sdpa",
    sparse: bool = False,
    sorted_microbatches: int = 0,
    max_slots: int | None = None,
) -> Variant:
    """ModernBertForMaskedLM of transformers on padded batches.

    Args:
        config: the shape.
        device: where.
        implementation: its attention.
        sparse: its `sparse_prediction`: the head on masked tokens alone.
        sorted_microbatches: sort documents by length and accumulate over so many microbatches of
            as many tokens each; 0 pads all documents to the longest.
        max_slots: cut further where a padded microbatch has more token slots than this.
    """
    import transformers

    settings = hugging_face_config(config, implementation, sparse)
    # Its sparse head insists on reshaping for labels, and compiles itself if it can: not here.
    model = transformers.ModernBertForMaskedLM(settings).to(device).train()
    optimizer = _optimizer(model, device)

    def cut(workload: Workload) -> list[list[int]]:
        order = list(range(len(workload.documents)))
        groups = [order]
        if sorted_microbatches:
            lengths = [len(document) for document in workload.documents]
            order.sort(key=lambda i: lengths[i])
            groups = _even_groups(order, lengths, sorted_microbatches)
        return [part for group in groups for part in _split(group, workload.documents, max_slots)]

    def step(workload: Workload) -> None:
        total = sum(int((labels != IGNORED).sum()) for labels in workload.labels)
        for group in cut(workload):
            ids = _pad([workload.documents[i] for i in group], 3).to(device)
            labels = _pad([workload.labels[i] for i in group], IGNORED).to(device)
            mask = _pad([torch.ones_like(workload.documents[i]) for i in group], 0).to(device)
            share = sum(int((workload.labels[i] != IGNORED).sum()) for i in group) / total
            with _autocast(device):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            (loss * share).backward()
        optimizer.step()
        optimizer.zero_grad()

    def slots(workload: Workload) -> int:
        groups = cut(workload)
        return sum(len(g) * max(len(workload.documents[i]) for i in g) for g in groups)

    name = f"transformers, {implementation}, {'sparse' if sparse else 'dense'} head"
    name += f", {sorted_microbatches} sorted microbatches" if sorted_microbatches else ", padded"
    return Variant(name=name, step=step, model=model, slots=slots)


def hugging_face_config(config: ModelConfig, implementation: str, sparse: bool) -> Any:
    """The same shape as transformers spells it, in either major version."""
    import transformers

    settings: dict[str, Any] = dict(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        local_attention=config.local_attention,
        global_attn_every_n_layers=config.global_attn_every_n_layers,
        max_position_embeddings=8192,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        sparse_prediction=sparse,
        attn_implementation=implementation,
    )
    return transformers.ModernBertConfig(**settings)


def _even_groups(order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(count)]
    total, seen = sum(lengths), 0
    for i in order:
        groups[min(count - 1, seen * count // total)].append(i)
        seen += lengths[i]
    return [group for group in groups if group]


def _split(group: list[int], documents: Sequence[Tensor], max_slots: int | None) -> list[list[int]]:
    if max_slots is None:
        return [group]
    parts: list[list[int]] = [[]]
    longest = 0
    for i in group:
        longest = max(longest, len(documents[i]))
        if parts[-1] and longest * (len(parts[-1]) + 1) > max_slots:
            parts.append([])
            longest = len(documents[i])
        parts[-1].append(i)
    return parts


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _optimizer(model: nn.Module, device: torch.device) -> Optimizer:
    config = StableAdamW() if optimizer_name() == "stable_adamw" else AdamW()
    return build_optimizer(config, model.named_parameters(), device.type)


def optimizer_name() -> str:
    """What every variant steps with: the recipe's optimizer, or, where optimi is missing, AdamW."""
    return "stable_adamw" if importlib.util.find_spec("optimi") else "adamw"


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
