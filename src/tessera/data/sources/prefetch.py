"""Background threads that work through a list that is replaced as training moves on."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable

_THREADS = 2


class Prefetcher:
    """Daemon threads of the process that makes it: never before a fork."""

    def __init__(self, try_prefetch: Callable[[int], bool]) -> None:
        """Start the threads; `try_prefetch` returns False for a shard to try again later."""
        self.pid = os.getpid()
        self._try_prefetch = try_prefetch
        self._wanted: deque[int] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        for _ in range(_THREADS):
            threading.Thread(target=self._work, name="tessera-prefetch", daemon=True).start()

    def replace(self, numbers: Iterable[int]) -> None:
        """Work through these from now on."""
        with self._changed:
            self._wanted = deque(numbers)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the threads, each after the shard it is at."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                wanted = self._wanted
                number = wanted.popleft()
            if not self._try_prefetch(number):
                with self._changed:
                    wanted.append(number)  # to a list that may have been replaced meanwhile
                    self._changed.wait(0.05)
