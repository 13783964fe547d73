"""One call for attention within packed documents, and the choice of what serves it."""

import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tessera.model.attention import flash, sdpa
from tessera.model.attention.packing import Packing, any_number

log = logging.getLogger(__name__)

Missing = Callable[[torch.device, torch.dtype, int], str | None]


@dataclass(frozen=True)
class Backend:
    """One implementation of `attend`."""

    attend: Callable[[Tensor, Tensor, Tensor, Packing, int | None], Tensor]
    missing: Missing
    """Of a device, a type and a head size: why it cannot serve there, or None."""
    prepare: Callable[[Tensor, int, int | None, bool], Any] = lambda *of_layers: None
    """What it computes once for all layers of a window, from `cu_seqlens`, T, the window and
    whether it is causal."""


def _missing_flex(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why FlexAttention cannot serve here; None if it can."""
    if device.type not in ("cuda", "xpu"):
        return f"torch compiles no backward pass of it for a {device.type} device"
    if head_size < 16:
        return f"needs a head size of at least 16; it is {head_size}"
    return None


def _attend_flex(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
    from tessera.model.attention import flex  # torch's compiler, which takes seconds to import

    return flex.attend(q, k, v, packing, window)


def _prepare_flex(cu_seqlens: Tensor, tokens: int, window: int | None, causal: bool) -> Any:
    from tessera.model.attention import flex

    return flex.prepare(cu_seqlens, tokens, window, causal)


BACKENDS = {
    "flash-attn-3": Backend(flash.attend_flash_attn_3, flash.missing_flash_attn_3),
    "flash-attn-4": Backend(flash.attend_flash_attn_4, flash.missing_flash_attn_4),
    "flash-attn-2": Backend(flash.attend_flash_attn_2, flash.missing_flash_attn_2),
    "torch-varlen": Backend(flash.attend_torch_varlen, flash.missing_torch_varlen),
    "flex": Backend(_attend_flex, _missing_flex, _prepare_flex),
    "sdpa": Backend(sdpa.attend, sdpa.missing, sdpa.prepare),
}
"""By name, the one that `auto` prefers first.

The order is fixed rather than measured at each start, because a run that is resumed must choose
again what it chose before; `benchmarks/train_step.py --attention all` measures it.
"""


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
    """Softmax attention of every token over the tokens of its own document.

    Args:
        q: (T, H, D) queries, positions already applied; the softmax scale is 1/sqrt(D).
        k: (T, H, D) keys.
        v: (T, H, D) values.
        packing: where documents begin, whether a token sees those after it, and the backend to
            use; see `prepare`.
        window: a token sees those at most this far away, on either side; None: all of them.

    Returns:
        (T, H, D).
    """
    return BACKENDS[packing.backend].attend(q, k, v, packing, window)


def prepare(
    cu_seqlens: Tensor,
    max_seqlen: int,
    backend: str,
    tokens: int,
    windows: set[int | None],
    *,
    causal: bool = False,
) -> Packing:
    """Compute what all layers share.

    Args:
        cu_seqlens: (n+1,) int32, from 0 to `tokens`.
        max_seqlen: no document is longer.
        backend: what `choose` returned.
        tokens: T.
        windows: those that `attend` will be called with.
        causal: whether a token sees itself and those before it alone.
    """
    prepared = {w: BACKENDS[backend].prepare(cu_seqlens, tokens, w, causal) for w in windows}
    return Packing(
        cu_seqlens=any_number(cu_seqlens),
        max_seqlen=max_seqlen,
        backend=backend,
        causal=causal,
        prepared=prepared,
    )


@cache
def choose(name: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """The backend that a model uses for all of its attention.

    Args:
        name: one of `BACKENDS`, or 'auto' for the first of them that can serve.
        device: of the model.
        dtype: of queries, keys and values: autocast's, if it is on.
        head_size: D.

    Raises:
        ValueError: there is no such backend, or it cannot serve here.
    """
    if name not in BACKENDS and name != "auto":
        close = difflib.get_close_matches(name, ["auto", *BACKENDS], n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(
            f"attention: unknown backend '{name}'; {hint}There are auto, {', '.join(BACKENDS)}"
        )
    reasons = dict(survey(device, dtype, head_size))
    able = [backend for backend, reason in reasons.items() if reason is None]
    if name != "auto" and reasons[name]:
        raise ValueError(
            f"attention: '{name}' cannot serve on this machine: {reasons[name]}. "
            f"Use 'auto', or force one that can: {', '.join(able)}"
        )
    chosen = able[0] if name == "auto" else name
    log.info("attention: %s on %s in %s", chosen, device, dtype)
    return chosen


def survey(
    device: torch.device | None = None, dtype: torch.dtype | None = None, head_size: int = 64
) -> list[tuple[str, str | None]]:
    """Every backend with the reason why it cannot serve here, or None.

    Without arguments: on this machine's GPU in bfloat16, or on its CPU in float32.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return [(name, b.missing(device, dtype, head_size)) for name, b in BACKENDS.items()]
