"""Flash attention (https://arxiv.org/abs/2205.14135) over packed documents, from whoever ships it.

Every kernel here takes cumulative lengths and a window, wants half precision and a GPU, and leaves
documents of no tokens alone. What a package does not offer to torch's compiler as an operator is
wrapped into one.

Legend: `T` token slots, `H` heads, `D` channels of a head.
"""

import importlib
import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tessera.model.attention.packing import Packing


def missing_flash_attn_2(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why the flash-attn package cannot serve here; None if it can."""
    return _unfit(device, dtype, head_size, (8, 0)) or _not_importable(
        "flash_attn", "flash_attn_varlen_func", "pip install 'tessera[flash]'"
    )


def missing_flash_attn_3(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why FlashAttention-3 cannot serve here; None if it can. It is for Hopper alone."""
    return (
        _unfit(device, dtype, head_size, (9, 0))
        or _not_generation(device, {9})
        or _not_importable(
            "flash_attn_interface",
            "flash_attn_varlen_func",
            "build the hopper folder of github.com/Dao-AILab/flash-attention",
        )
    )


def missing_flash_attn_4(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why flash-attn-4 cannot serve here; None if it can. It is for Hopper and Blackwell."""
    return (
        _unfit(device, dtype, head_size, (9, 0))
        or _not_generation(device, {9, 10, 11})
        or _not_importable(
            "flash_attn.cute.interface", "_flash_attn_bwd", "pip install 'tessera[fa4]'"
        )
    )


def missing_torch_varlen(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why torch's own flash kernel cannot serve here; None if it can."""
    if torch.version.hip is not None:
        return "torch's kernel for AMD GPUs takes no window"
    unfit = _unfit(device, dtype, head_size, (8, 0))
    if unfit is None:
        _look_for_varlen_attn()
    return unfit


def attend_flash_attn_2(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None
) -> Tensor:
    """See `tessera.model.attention.backends.attend`."""
    function = importlib.import_module("flash_attn").flash_attn_varlen_func
    return _call_varlen(function, q, k, v, packing, window)


def attend_flash_attn_3(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None
) -> Tensor:
    """See `tessera.model.attention.backends.attend`."""
    function = importlib.import_module("flash_attn_interface").flash_attn_varlen_func
    return _call_varlen(function, q, k, v, packing, window)


def attend_flash_attn_4(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None
) -> Tensor:
    """See `tessera.model.attention.backends.attend`."""
    reach = _reach(packing, window)
    return _flash(q, k, v, packing.cu_seqlens, packing.max_seqlen, *reach, "cute")[0]


def attend_torch_varlen(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None
) -> Tensor:
    """See `tessera.model.attention.backends.attend`.

    torch 2.11 and newer choose between cuDNN's kernel and their own; older ones have the latter,
    as has who asks for deterministic algorithms.
    """
    ends, longest = packing.cu_seqlens, packing.max_seqlen
    if torch.are_deterministic_algorithms_enabled() or _varlen_attn is None:
        return _flash(q, k, v, ends, longest, *_reach(packing, window), "aten")[0]
    reach = _reach(packing, window)
    return _varlen_attn(q, k, v, ends, ends, longest, longest, window_size=reach)


def _call_varlen(
    function: Any, q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None
) -> Tensor:
    ends, longest = packing.cu_seqlens, packing.max_seqlen
    out = function(
        q,
        k,
        v,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        causal=packing.causal,
        window_size=_reach(packing, window),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out[0] if isinstance(out, tuple) else out


def _reach(packing: Packing, window: int | None) -> tuple[int, int]:
    """How far a token sees to the left and to the right; -1: to the end of its document.

    Every kernel takes (-1, 0) for causal attention, and (window, 0) for its left half.
    """
    reach = -1 if window is None else window
    return reach, 0 if packing.causal else reach


_varlen_attn: Any = None
"""What torch itself offers; None before somebody asked, or if this torch's takes no window."""


def _look_for_varlen_attn() -> None:
    """Find torch's function before any layer is compiled: compiled code could not look for it."""
    global _varlen_attn
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return
    if "window_size" in inspect.signature(varlen_attn).parameters:
        _varlen_attn = varlen_attn


# ---- kernels without an operator of their own


@torch.library.custom_op("tessera::flash", mutates_args=())
def _flash(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, left: int, right: int, kernel: str
) -> tuple[Tensor, Tensor]:
    if kernel == "aten":
        out, log_sums, *_ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            ends,
            ends,
            longest,
            longest,
            0.0,
            right == 0,
            False,
            window_size_left=left,
            window_size_right=right,
        )
    else:
        module = importlib.import_module("flash_attn.cute.interface")
        out, log_sums, *_ = module._flash_attn_fwd(
            q,
            k,
            v,
            cu_seqlens_q=ends,
            cu_seqlens_k=ends,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=right == 0,
            window_size_left=None if left < 0 else left,
            window_size_right=None if right < 0 else right,
            return_lse=True,
        )
    return out, log_sums.contiguous()


@torch.library.custom_op("tessera::flash_backward", mutates_args=())
def _flash_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
    ends: Tensor,
    longest: int,
    left: int,
    right: int,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if kernel == "aten":
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
        d_q, d_k, d_v = torch.ops.aten._flash_attention_backward(
            d_out,
            q,
            k,
            v,
            out,
            log_sums,
            ends,
            ends,
            longest,
            longest,
            0.0,
            right == 0,
            no_dropout,
            torch.empty(0, device=q.device),
            window_size_left=left,
            window_size_right=right,
        )
    else:
        module = importlib.import_module("flash_attn.cute.interface")
        d_q, d_k, d_v, *_ = module._flash_attn_bwd(
            q,
            k,
            v,
            out,
            d_out,
            log_sums,
            cu_seqlens_q=ends,
            cu_seqlens_k=ends,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=right == 0,
            window_size_left=None if left < 0 else left,
            window_size_right=None if right < 0 else right,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
    return d_q, d_k, d_v


@_flash.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, left: int, right: int, kernel: str
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.size(1), q.size(0)), dtype=torch.float32)


@_flash_backward.register_fake
def _(d_out: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, ends, *ctx.constants = inputs
    ctx.save_for_backward(q, k, v, *output, ends)


def _backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _flash_backward(d_out.contiguous(), *ctx.saved_tensors, *ctx.constants)
    return *gradients, *[None] * 5


_flash.register_autograd(_backward, setup_context=_save)


# ---- why not


def _unfit(
    device: torch.device, dtype: torch.dtype, head_size: int, oldest: tuple[int, int]
) -> str | None:
    if device.type != "cuda":
        return f"needs an NVIDIA or AMD GPU; this is a {device.type} device"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs half precision (precision: amp_bf16); queries are {dtype}".replace(
            "torch.", ""
        )
    if head_size % 8 or head_size > 256:
        return f"needs a head size that 8 divides, of at most 256; it is {head_size}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < oldest:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"needs compute capability {oldest[0]}.{oldest[1]} or newer; this GPU has {found}"
    return None


def _not_generation(device: torch.device, generations: set[int]) -> str | None:
    major = torch.cuda.get_device_capability(device)[0]
    if torch.version.hip is not None or major not in generations:
        wanted = " or ".join(f"{generation}.x" for generation in sorted(generations))
        return f"is for compute capability {wanted}; this GPU has {major}.x"
    return None


@cache
def _not_importable(module: str, name: str, cure: str) -> str | None:
    try:
        found = hasattr(importlib.import_module(module), name)
    except (ImportError, OSError, RuntimeError) as error:
        return f"cannot import {module} ({error}); {cure}"
    return None if found else f"the installed {module} has no {name}; {cure}"
