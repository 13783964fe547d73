"""Says so when compiled layers are compiled again after they should have settled."""

from collections.abc import Callable

from composer.core import Callback, State
from composer.loggers import Logger

from tessera.model.compilation import graphs_compiled

WARM_UP_STEPS = 20
"""First steps, rarer shapes and the first evaluation may compile."""


class RecompileWatch(Callback):
    """Compares the count of graphs before and after each training step."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._steps = 0
        self._before = 0

    def batch_start(self, state: State, logger: Logger) -> None:
        """Count."""
        self._before = graphs_compiled()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count again; come before whatever else may compile between steps."""
        self._steps += 1
        new = graphs_compiled() - self._before
        if new and self._steps > WARM_UP_STEPS:
            self._warn(
                f"step {state.timestamp.batch.value} compiled {new} more graphs; shapes should be "
                "the same at every step. TORCH_LOGS=recompiles says what differed"
            )
