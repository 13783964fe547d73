"""Steps whose loss or gradient left the usual range, found in the record itself.

Curves are smoothed and thinned; what happened once in a hundred thousand steps is said in words and
marked.
"""

from dataclasses import dataclass

import numpy as np

from tessera.reporting.phase import Phase

GRADIENT_TIMES = 10.0
"""A gradient norm is unusual above so many times the median of the steps before it."""
_LOSS_DEVIATIONS = 8.0
_FLOOR = 0.01
_NORMAL = 1.4826
_WINDOW, _BLOCK, _FEWEST = 75, 25, 25


@dataclass(frozen=True)
class Unusual:
    """The unusual steps of one number of a phase."""

    steps: np.ndarray
    """(n,) indices into the phase's steps."""
    values: np.ndarray
    """(n,) what was recorded there."""
    usual: np.ndarray
    """(n,) the median of the steps before."""


def unusual(phase: Phase, name: str) -> Unusual:
    """Steps where `loss` or `grad_norm` stands out from up to 75 steps before it.

    A loss stands out by more than eight deviations (1.4826 times the median absolute deviation, at
    least 1 % of the median), by training's rule; a gradient norm by ten times the median.
    """
    values = phase.column(name)
    found = []
    for begin in range(0, len(values), _BLOCK):
        before = values[max(0, begin - _WINDOW) : begin]
        before = before[np.isfinite(before)]
        if len(before) < _FEWEST:
            continue
        usual = float(np.median(before))
        limit = GRADIENT_TIMES * usual
        if name == "loss":
            spread = _NORMAL * float(np.median(np.abs(before - usual)))
            limit = usual + _LOSS_DEVIATIONS * max(spread, _FLOOR * abs(usual))
        block = values[begin : begin + _BLOCK]
        above = np.flatnonzero(np.isfinite(block) & (block > limit))
        found += [(begin + int(index), float(block[index]), usual) for index in above]
    columns = np.array(found).reshape(-1, 3)
    return Unusual(columns[:, 0].astype(int), columns[:, 1], columns[:, 2])


def remarks(phase: Phase) -> list[str]:
    """What is to be said of the unusual steps of a phase, one phrase each."""
    said = []
    for name, called in (("loss", "training loss"), ("grad_norm", "gradient norm")):
        found = unusual(phase, name)
        if not len(found.steps):
            continue
        worst = int(np.argmax(found.values / np.maximum(found.usual, 1e-30)))
        step = int(phase.column("step")[found.steps[worst]])
        count = len(found.steps)
        others = "" if count == 1 else f"; {count} steps stand out"
        said.append(
            f"the {called} reached {found.values[worst]:.3g} at step {step:,}, where "
            f"{found.usual[worst]:.3g} was usual{others}"
        )
    return said
