"""ModernBERT (https://arxiv.org/abs/2412.13663) on one flat sequence of packed documents.

Parameters have the names and shapes of `ModernBertForMaskedLM` in transformers, so that exporting
is copying. Padding does not exist in here: a row's unfilled tail is one more document.

Legend: `T` token slots, `n` documents, `M` predicted tokens, `V` vocabulary, `D` hidden size,
`H` heads, `I` intermediate size.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from tessera.batch import IGNORED
from tessera.model.attention.backends import attend, choose, prepare
from tessera.model.attention.packing import Packing, positions_in_documents
from tessera.model.compilation import compile_modules
from tessera.model.config import ModelConfig
from tessera.model.dropout import dropout_mask, layer_keys
from tessera.model.initialization import initialize
from tessera.model.loss import masked_loss
from tessera.model.rope import Rotary, rotary, rotate


@dataclass(frozen=True, kw_only=True)
class MaskedLMOutput:
    """Logits if nothing was to be predicted, else the loss."""

    logits: Tensor | None = None
    """(T, V), or (M, V) of the slots asked for."""
    loss_sum: Tensor | None = None
    """float32 scalar: sum of the cross-entropy over the masked tokens."""
    masked_tokens: Tensor | None = None
    """int64 scalar: how many tokens that sum is over."""
    vectors: Tensor | None = None
    """(T, D) of the encoder, or (M, D) of the slots asked for, if they are all that is wanted."""


class ModernBertForMaskedLM(nn.Module):
    """The encoder and its masked-language-modelling head, which shares the embedding matrix."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        attention: str = "auto",
        z_loss: float = 0.0,
        causal: bool = False,
    ):
        """Build without initialising: see `initialize`.

        Args:
            config: the shape.
            attention: a backend of `tessera.model.attention.backends`, or 'auto'.
            z_loss: weight of the squared log-partition in the loss; 0 is the published recipe.
            causal: whether a token sees itself and those before it alone, for next-token
                prediction; in a windowed layer, those of the window's left half. The weights are
                the same, and nothing of it is stored with them.
        """
        super().__init__()
        self.config = config
        self.z_loss = z_loss
        self.compiled_loss = False
        self.model = Encoder(config, attention, causal)
        self.head = PredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.tie_weights()

    def forward(
        self,
        input_ids: Tensor,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        masked_labels: Tensor | None = None,
        dropout_keys: Tensor | None = None,
        only_vectors: bool = False,
    ) -> MaskedLMOutput:
        """Predict tokens of a flat sequence of documents.

        Args:
            input_ids: (T,) int64.
            cu_seqlens: (n+1,) int32, from 0 to T: where each document begins. None is mixed with
                another; they may be empty.
            max_seqlen: no document is longer. Found out, at the cost of a host sync, if not given.
            labels: (T,) int64, the original token where it is to be predicted, else `IGNORED`.
                Costs a host sync; training gives the next two instead.
            masked_positions: (M,) int64, the slots to predict.
            masked_labels: (M,) int64, the original token of each; `IGNORED` ones do not count.
                Without it, what comes back are the logits of those slots.
            dropout_keys: (T,) int32 from `tessera.model.dropout.dropout_keys`. Without it,
                training drops what torch's own generator says.
            only_vectors: predict nothing, and give the encoder's vectors.

        Returns:
            The vectors if they are wanted; the loss if labels are given; else the logits, of every
            slot or of `masked_positions`.
        """
        if labels is not None:
            masked_positions = (labels != IGNORED).nonzero().squeeze(1)
            masked_labels = labels.index_select(0, masked_positions)
        if masked_labels is not None and masked_positions is None:
            raise ValueError("masked_labels need masked_positions: the slots they are predicted at")
        hidden = self.model(
            input_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            dropout_keys=dropout_keys,
            keep=masked_positions,
        )
        if only_vectors:
            return MaskedLMOutput(vectors=hidden)
        hidden = self.head(hidden)
        if masked_labels is None:
            return MaskedLMOutput(logits=self.decoder(hidden))
        loss_sum = masked_loss(
            hidden,
            self.decoder.weight,
            self.decoder.bias,
            masked_labels,
            z_loss=self.z_loss,
            compiled=self.compiled_loss,
        )
        return MaskedLMOutput(loss_sum=loss_sum, masked_tokens=(masked_labels != IGNORED).sum())

    def initialize(self, seed: int) -> None:
        """Fill every weight, as a function of the seed and the config alone."""
        initialize(self, self.config, seed)

    def tie_weights(self) -> None:
        """Make the decoder's matrix the embedding matrix."""
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def _apply(self, fn: Callable, recurse: bool = True) -> "ModernBertForMaskedLM":
        super()._apply(fn, recurse)
        self.tie_weights()  # leaving the meta device makes two matrices out of one
        return self

    def compile_layers(self) -> None:
        """Have torch compile each layer, the head and the loss when they are first called."""
        compile_modules([*self.model.layers, self.head])
        self.compiled_loss = True

    def checkpoint_layers(self, layers: bool | Iterable[int]) -> None:
        """Keep no activations of these layers, all or none: backward computes them again."""
        count = self.config.num_hidden_layers
        chosen = range(count if layers else 0) if isinstance(layers, bool) else layers
        self.model.checkpointed = frozenset(chosen)
        beyond = sorted(i for i in self.model.checkpointed if not 0 <= i < count)
        if beyond:
            raise ValueError(
                f"activation_checkpointing names layers {beyond}, but the model's {count} layers "
                f"are numbered 0 to {count - 1}"
            )


class Encoder(nn.Module):
    """Embeddings, layers and final norm: a vector per token."""

    def __init__(self, config: ModelConfig, attention: str, causal: bool = False):
        super().__init__()
        self.config = config
        self.attention = attention
        self.causal = causal
        self.checkpointed: frozenset[int] = frozenset()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            Layer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.final_norm = _norm(config)

    def forward(
        self,
        input_ids: Tensor,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int | None = None,
        dropout_keys: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """(T, D) vectors, or (M, D) of the slots `keep` (M,) alone. See `ModernBertForMaskedLM`."""
        packing = self._packing(cu_seqlens, max_seqlen, input_ids.numel())
        positions = positions_in_documents(cu_seqlens, input_ids.numel())
        rotaries = {
            theta: rotary(positions, self.config.head_size, theta)
            for theta in {self.config.rope_theta(i) for i in range(len(self.layers))}
        }
        every_key = None if dropout_keys is None else layer_keys(dropout_keys, len(self.layers))
        x = self.embeddings(input_ids)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            keys = None if every_key is None else every_key[i]
            arguments = (
                x,
                packing,
                rotaries[self.config.rope_theta(i)],
                keys,
                keep if i == last else None,
            )
            if i in self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return self.final_norm(x)

    def _packing(self, cu_seqlens: Tensor, max_seqlen: int | None, tokens: int) -> Packing:
        weight = self.embeddings.tok_embeddings.weight
        device = weight.device.type
        autocast = torch.is_autocast_enabled(device)
        backend = choose(
            self.attention,
            weight.device,
            torch.get_autocast_dtype(device) if autocast else weight.dtype,
            self.config.head_size,
        )
        if max_seqlen is None:
            max_seqlen = int(cu_seqlens.diff().max())
        windows = {self.config.window(i) for i in range(len(self.layers))}
        return prepare(cu_seqlens, max_seqlen, backend, tokens, windows, causal=self.causal)


class Layer(nn.Module):
    """Attention and a gated feed-forward layer, each normed before and added to the stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attn_norm = nn.Identity() if layer == 0 else _norm(config)  # embeddings are normed
        self.attn = Attention(config, config.window(layer))
        self.mlp_norm = _norm(config)
        self.mlp = GatedMLP(config)
        self.dropout = config.attention_output_dropout

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        turn: Rotary,
        dropout_keys: Tensor | None,
        keep: Tensor | None,
    ) -> Tensor:
        """(T, D) -> (T, D), or (M, D) if only the slots `keep` are of further interest."""
        attended = self.attn(self.attn_norm(x), packing, turn)
        if keep is not None:
            x, attended = x.index_select(0, keep), attended.index_select(0, keep)
            dropout_keys = None if dropout_keys is None else dropout_keys.index_select(0, keep)
        x = self._add(x, self.attn.Wo(attended), dropout_keys)
        return x + self.mlp(self.mlp_norm(x))

    def _add(self, x: Tensor, branch: Tensor, keys: Tensor | None) -> Tensor:
        if not self.training or not self.dropout:
            return x + branch
        if keys is None:
            return x + nn.functional.dropout(branch, self.dropout)
        return torch.addcmul(x, branch, dropout_mask(keys, x.size(1), self.dropout))


class Attention(nn.Module):
    """Multi-head attention within documents, global or in a window, up to its output projection.

    With `qk_norm`, each head's queries and keys are layer-normed over its channels before they are
    turned, with gains that the heads share (https://arxiv.org/abs/2302.05442, section 2): the norm
    of that paper, and the one that the rest of this model has.
    """

    def __init__(self, config: ModelConfig, window: int | None):
        super().__init__()
        self.heads = config.num_attention_heads
        self.window = window
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.normed = config.qk_norm
        if self.normed:
            self.q_norm = _norm(config, config.head_size)
            self.k_norm = _norm(config, config.head_size)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, packing: Packing, turn: Rotary) -> Tensor:
        """(T, D) -> (T, D), which the layer puts through `Wo` where it is needed."""
        qkv = self.Wqkv(x).unflatten(1, (3, self.heads, -1))  # (T, 3D) -> (T, 3, H, D/H)
        if self.normed:
            q, k, v = qkv.unbind(1)  # autocast norms in float32; what attention gets stays half
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
            qkv = torch.stack((q, k, v), dim=1)
        return attend(*rotate(qkv, turn), packing, self.window).flatten(1)  # -> (T, D)


class GatedMLP(nn.Module):
    """Half of the channels, through a GELU, gate the other half (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        gate, value = self.Wi(x).chunk(2, dim=-1)  # (T, I) each
        return self.Wo(gelu(gate) * value)


class Embeddings(nn.Module):
    """Token embeddings, normed. Positions come in through the rotation of queries and keys."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        # With a weight given, torch does not draw one, whose code takes seconds to import on the
        # meta device.
        unset = torch.empty(config.vocab_size, config.hidden_size)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, _weight=unset)
        self.norm = _norm(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(T,) -> (T, D)."""
        return self.norm(self.tok_embeddings(input_ids))


class PredictionHead(nn.Module):
    """What precedes the decoder."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = _norm(config)

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> (M, D)."""
        return self.norm(gelu(self.dense(x)))


def _norm(config: ModelConfig, channels: int | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(channels or config.hidden_size, eps=config.norm_eps, bias=False)
