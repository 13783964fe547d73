"""The encoder as Composer trains it: what a microbatch is, and what its loss counts for.

In a causal phase the encoder is causal, the predicted tokens are the next ones, and all else is the
same: what is called masked here is what is predicted.
"""

from collections.abc import Callable, Iterable

from composer.core import DataSpec
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from tessera.batch import PackedBatch, RankBatch
from tessera.model.dropout import dropout_keys
from tessera.model.modernbert import Layer, MaskedLMOutput, ModernBertForMaskedLM
from tessera.model.scoring import scores, token_losses


class ShardableEncoder(ModernBertForMaskedLM):
    """The model, with the answer to what Composer asks where weights are sharded."""

    def fsdp_wrap_fn(self, module: nn.Module) -> bool:
        """Whether a module's weights are gathered and let go together: each layer's are."""
        return isinstance(module, Layer)


class MaskedLanguageModel(ComposerModel):
    """Masked-language modelling with one vote per masked token of the global batch.

    Composer multiplies a microbatch's loss by its share of what `train_data_spec` reports as
    loss-generating tokens, averaged over ranks; DDP then averages over ranks. With the mean over
    the microbatch's masked tokens here, that makes the gradient of sum / count over all of them:
    with s_i the loss's sum over the m_i masked tokens of microbatch i, of W ranks together,
    (1/W) sum_i (s_i / m_i) * m_i / (M / W) = sum_i s_i / M, where M = sum_i m_i.
    """

    def __init__(self, encoder: ModernBertForMaskedLM, seed: int) -> None:
        super().__init__()
        self.model = encoder
        self.seed = seed
        self.losses: list[Tensor] = []
        """Sum of the loss of each microbatch since `losses` was last emptied."""

    def forward(
        self,
        batch: PackedBatch,
        ask: Callable[[ModernBertForMaskedLM, PackedBatch], Tensor] = scores,
    ) -> Tensor | MaskedLMOutput:
        """The loss of a microbatch in training; in eval mode the answer to `ask`.

        An answer is found by calling the whole model: there, weights that are spread over ranks are
        put together.
        """
        batch = batch.to(self.model.decoder.weight.device, non_blocking=True)
        if not self.training:
            return ask(self.model, batch)
        return self.model(
            batch.input_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            masked_positions=batch.masked_positions,
            masked_labels=batch.masked_labels,
            dropout_keys=self._dropout_keys(batch),
        )

    def token_losses(self, batch: PackedBatch) -> Tensor:
        """(M,) float32: what each prediction adds to the loss of a training microbatch."""
        batch = batch.to(self.model.decoder.weight.device)
        logits = self.model(
            batch.input_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            masked_positions=batch.masked_positions,
            dropout_keys=self._dropout_keys(batch),
        ).logits
        for module in self.modules():
            # Older versions of torch leave the root of sharded weights whole until a backward pass.
            # None comes here: the next forward pass would not see what the optimizer changes.
            if isinstance(module, FSDPModule):
                module.reshard()
        return token_losses(logits, batch.masked_labels)

    def _dropout_keys(self, batch: PackedBatch) -> Tensor | None:
        if not self.model.config.attention_output_dropout:
            return None
        return dropout_keys(self.seed, batch.rows, batch.row_tokens)

    def loss(self, outputs: MaskedLMOutput, batch: PackedBatch) -> Tensor:
        """Mean over the microbatch's masked tokens; 0 if it has none."""
        assert outputs.loss_sum is not None
        self.losses.append(outputs.loss_sum.detach())
        return outputs.loss_sum / max(1, batch.masked_tokens)


def train_data_spec(loader: Iterable[RankBatch], *, pin: bool) -> DataSpec:
    """How Composer takes batches apart and counts them: in real tokens.

    Args:
        loader: yields this rank's share of each global batch, for ever.
        pin: whether copies to the device are to overlap with work on it.
    """

    def split(batch: RankBatch, size: int | float) -> list[PackedBatch]:
        microbatches = list(batch.microbatches)
        return [m.pin_memory() for m in microbatches] if pin else microbatches

    return DataSpec(
        loader,
        split_batch=split,
        get_num_samples_in_batch=lambda batch: batch.documents,
        get_num_tokens_in_batch=lambda batch: {
            "total": batch.tokens,
            "loss_generating": _votes(batch.masked_tokens),
        },
    )


def _votes(masked_tokens: int) -> int:
    """Composer's weight of a microbatch, of which only ratios matter.

    Proportional to the masked tokens far within float32's precision, yet never 0: Composer divides
    by the sum, which a global batch without a single masked token would make 0. The sum is an
    int64, which holds the votes of 134 million masked tokens.
    """
    return masked_tokens << 36 or 1
