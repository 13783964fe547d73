"""The lease of a run folder in an object store: one run at a time may write there.

`lease.json` says who holds it. The holder writes it anew a few times per `seconds`; whoever else
comes reads its age by the store's own clock. A holder that is silent for longer is taken for dead,
and so is one whose process is gone from this very machine. Every change is a conditional write, so
that of two who want the lease one gets it, and a holder that was only asleep finds out.

`generation` counts the holders: a local folder that was last in step with the generation before
this one is known not to have missed anything.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tessera.object_store import UNGUARDED, Conflict, Object, S3Store, StoreError

LEASE = "lease.json"
RENEWALS = 4
"""How often within its time a lease is renewed."""
_LOOK_AGAIN_SECONDS = 1.0


class LeaseHeld(ValueError):
    """Another run is training in the folder."""


class LeaseLost(Exception):
    """Another run has taken the folder over: this one may not write there any more."""


@dataclass(frozen=True)
class Terms:
    """What `lease.json` says."""

    holder: str
    generation: int
    host: str
    process: str
    """Names one process of one machine, as long as that is up."""
    seconds: float
    renewals: int = 0
    released: bool = False


class Lease:
    """A lease that this run holds; `renew` it in time, or somebody else will take it."""

    def __init__(self, store: S3Store, terms: Terms, version: str) -> None:
        self.terms, self._store, self._version = terms, store, version
        self._renewed = time.monotonic()

    def pass_on(self) -> dict[str, Any]:
        """What another process of this run needs to renew it instead of this one."""
        return {"terms": asdict(self.terms), "version": self._version}

    @classmethod
    def passed_on(cls, store: S3Store, handed: dict[str, Any]) -> "Lease":
        """The lease that `pass_on` described."""
        return cls(store, Terms(**handed["terms"]), handed["version"])

    @property
    def is_fresh(self) -> bool:
        """Whether nobody can have taken it over yet."""
        return time.monotonic() - self._renewed < self.terms.seconds * 0.75

    def renew(self) -> None:
        """Say that this run is alive.

        Raises:
            LeaseLost: another run has it.
            StoreError: the store cannot be asked; nobody else could take the lease there either.
        """
        self._write(replace(self.terms, renewals=self.terms.renewals + 1))

    def release(self) -> None:
        """Let another run write at once."""
        self._write(replace(self.terms, released=True))

    def _write(self, terms: Terms) -> None:
        before = time.monotonic()
        try:
            self._version = self._store.write(LEASE, _encode(terms), replaces=self._version)
        except Conflict:
            found = self._store.read(LEASE)
            if found is None:
                raise LeaseLost(
                    f"{LEASE} is gone from {self._store.place}: somebody deleted it, or all that "
                    "was there"
                ) from None
            theirs = _decode(found)
            if theirs is None or theirs.holder != terms.holder:
                who = f"a run on {theirs.host}" if theirs is not None else "somebody"
                raise LeaseLost(
                    f"{self._store.place} was taken over by {who}, because nothing was heard from "
                    f"this one for {terms.seconds:.0f} s"
                ) from None
            # A write whose answer was lost: it is ours, and says so.
            self._version = self._store.write(LEASE, _encode(terms), replaces=found.version)
        self.terms, self._renewed = terms, before


def acquire(
    store: S3Store, seconds: float, say: Callable[[str], None] = lambda text: None
) -> tuple[Lease, int]:
    """Take the lease, waiting for one that may be a dead run's to expire.

    Args:
        store: the run folder.
        seconds: after how long a silence another run may take it over.
        say: told when there is something to wait for.

    Returns:
        The lease, and the generation before it; 0 if there was none.

    Raises:
        LeaseHeld: another run is alive there.
        StoreError: the store does not answer, may not be written to, or ignores conditions.
    """
    lease, before = _take(store, seconds, say)
    for condition in ({"new": True}, {"replaces": f'"{0:032x}"'}):  # neither holds
        try:
            store.write(LEASE, _encode(lease.terms), **condition)
        except Conflict:
            continue
        store.delete([LEASE])
        raise StoreError(f"{store.place}: {UNGUARDED}")
    return lease, before


def _take(store: S3Store, seconds: float, say: Callable[[str], None]) -> tuple[Lease, int]:
    own = Terms(
        holder=uuid.uuid4().hex,
        generation=1,
        host=socket.gethostname(),
        process=this_process(),
        seconds=seconds,
    )
    seen: str | None = None
    while True:
        found = store.read(LEASE)
        theirs = _decode(found) if found is not None else None
        before = theirs.generation if theirs is not None else 0
        terms = replace(own, generation=before + 1)
        try:
            if theirs is not None and theirs.holder == own.holder and found is not None:
                return Lease(store, theirs, found.version), theirs.generation - 1
            if found is None:
                return Lease(store, terms, store.write(LEASE, _encode(terms), new=True)), 0
            if theirs is None or _is_over(theirs, found):
                version = store.write(LEASE, _encode(terms), replaces=found.version)
                return Lease(store, terms, version), before
        except Conflict:
            continue
        if seen is not None and seen != found.version:
            raise LeaseHeld(
                f"{store.place} is in use: another run, on {theirs.host}, is training there (it "
                f"renewed its lease {found.age_seconds:.0f} s ago). Two would write over each "
                "other; wait for it, stop it, or give this one a run_folder of its own"
            )
        if seen is None:
            left = theirs.seconds - found.age_seconds
            say(
                f"{store.place} was in use {found.age_seconds:.0f} s ago, by a run on "
                f"{theirs.host}; waiting up to {max(1, left):.0f} s to see whether it is alive"
            )
        seen = found.version
        time.sleep(_LOOK_AGAIN_SECONDS)


def this_process() -> str:
    """A name for this process that no other has, on any machine, at any time."""
    return f"{_machine()}/{os.getpid()}/{_started(os.getpid())}"


def _is_over(terms: Terms, found: Object) -> bool:
    ours = terms.process == this_process()  # an attempt of ours whose answer was lost
    return ours or terms.released or found.age_seconds > terms.seconds or _is_gone(terms.process)


def _is_gone(process: str) -> bool:
    """Whether a process of this machine has ended; of another's nothing is known."""
    machine, _, rest = process.rpartition("/")[0].rpartition("/")
    started = process.rpartition("/")[2]
    return machine == _machine() != "" and rest.isdigit() and _started(int(rest)) != started


def _machine() -> str:
    """This boot of this machine, and the namespace in which its processes have their numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, by its machine's clock; '' if it has ended (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _encode(terms: Terms) -> bytes:
    return json.dumps(asdict(terms)).encode()


def _decode(found: Object) -> Terms | None:
    """What a lease says; None if it is none, which holds for nobody."""
    try:
        return Terms(**json.loads(found.content))
    except (ValueError, TypeError):
        return None
