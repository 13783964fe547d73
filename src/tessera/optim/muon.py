"""Muon for matrices and AdamW for the rest, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from tessera.optim.config import Muon


class MuonWithAdamW(Optimizer):
    """Two optimizers of torch over one list of groups and one state.

    Composer trains with a single optimizer, and a checkpoint holds one; inside, torch's own Muon
    and AdamW each step their share of the groups.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        rest: list[dict[str, Any]],
        config: Muon,
        *,
        fused: bool,
    ):
        """Split the groups; raises ValueError if this torch has no Muon."""
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f"optimizer.name: muon needs torch 2.9 or newer, this is {torch.__version__}; "
                "use stable_adamw or adamw"
            )
        self._muon = torch.optim.Muon(
            matrices, lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(
            rest,
            lr=config.rest.lr,
            betas=config.rest.betas,
            eps=config.rest.eps,
            fused=fused,
        )
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        count = len(self._muon.param_groups)
        self._muon.param_groups = self.param_groups[:count]
        self._adamw.param_groups = self.param_groups[count:]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, which replaces groups and state, and share them again."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = self._muon.step(closure)
        self._adamw.step()
        return loss
