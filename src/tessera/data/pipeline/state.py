"""Where a loader stands, and what must not change under it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.data.config import MAY_CHANGE, DataConfig
from tessera.data.pipeline.lane import LaneState
from tessera.data.pipeline.streams import Reader
from tessera.tokenizer import Tokenizer

Fingerprint = dict[str, str]
"""What the rows depend on beside the lanes' states, each by its key in the YAML."""

_REPEATED = "documents already trained on would come again, and others never"
_CONSEQUENCES = {
    "lanes": "the places of the lanes fit no others; " + _REPEATED,
    "canonical_nodes": "the places of the lanes fit no other groups; " + _REPEATED,
    "seed": "documents come in another order: " + _REPEATED,
    "shuffle": "documents come in another order: " + _REPEATED,
    "block_documents": "documents come in another order: " + _REPEATED,
    "max_seq_len": "pieces of the documents now read may be lost or come again",
    "long_documents": "pieces of the documents now read may be lost or come again",
    "row_tokens": "rows after this one differ from those of the run so far; no document is lost",
    "waiting_pieces": "rows after this one differ from those of the run so far; "
    "no document is lost",
    "tokenizer": "token ids would mean other tokens than those trained on",
    "masking": "masks differ from those the run would have had; no document is lost",
}
_SOURCES = "sources."
_NEVER_ALLOWED = ("lanes", "canonical_nodes")
_PLAIN_KEYS = [key for key in _CONSEQUENCES if key not in ("seed", "tokenizer", "masking")]
assert _CONSEQUENCES.keys() == {*_NEVER_ALLOWED, *MAY_CHANGE}


@dataclass(frozen=True)
class LoaderState:
    """A place in the stream of global batches: all lanes, or the share of one rank."""

    fingerprint: Fingerprint
    step: int
    """Number of the next global batch."""
    rows: int
    """Rows in all the global batches so far."""
    sources: tuple[str, ...]
    """The names that the lanes' states number."""
    lanes: dict[int, LaneState] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes."""
        return {
            "fingerprint": dict(self.fingerprint),
            "step": self.step,
            "rows": self.rows,
            "sources": list(self.sources),
            "lanes": {str(lane): state.to_json() for lane, state in sorted(self.lanes.items())},
        }

    def passed_over(self) -> dict[str, dict[str, int]]:
        """Per source, how many documents these lanes have passed over: empty, unreadable ones.

        And those outside the lengths asked for, where there are any.
        """
        found = {}
        for n, name in enumerate(self.sources):
            cursors = [lane.cursors[n] for lane in self.lanes.values()]
            found[name] = {
                "empty": sum(cursor.empty_documents for cursor in cursors),
                "unreadable": sum(cursor.bad_documents for cursor in cursors),
            }
            if outside := sum(cursor.outside_documents for cursor in cursors):
                found[name]["outside_length"] = outside
        return found

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "LoaderState":
        """The inverse of `to_json`."""
        return cls(
            fingerprint=dict(plain["fingerprint"]),
            step=plain["step"],
            rows=plain["rows"],
            sources=tuple(plain["sources"]),
            lanes={int(lane): LaneState.from_json(s) for lane, s in plain["lanes"].items()},
        )


def merge_states(shares: Iterable[LoaderState]) -> LoaderState:
    """The whole state, from the shares of all ranks after the same step."""
    first, *others = shares
    lanes = dict(first.lanes)
    for share in others:
        assert (share.step, share.rows) == (first.step, first.rows), "shares of different steps"
        assert not lanes.keys() & share.lanes.keys(), "two ranks claim one lane"
        lanes |= share.lanes
    return LoaderState(first.fingerprint, first.step, first.rows, first.sources, lanes)


def check_fingerprint(saved: Fingerprint, now: Fingerprint, allowed: Sequence[str]) -> None:
    """Refuse to continue a stream that would silently become another.

    Raises:
        ValueError: Naming each difference, what it would lose or repeat, and the way out.
    """
    changed = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    refused = [key for key in changed if key not in allowed or key in _NEVER_ALLOWED]
    if not refused:
        return
    lines = ["the data differ from those of the checkpoint:"]
    for key in refused:
        before, after = saved.get(key, "absent"), now.get(key, "absent")
        lines.append(f"  train_data.{key}: was {before}, now {after}; {_consequence(key)}")
    lines.append("Set them back to continue exactly. Or start a new phase with `start_from`, whose")
    lines.append("data begin anew.")
    if overridable := [key for key in refused if key not in _NEVER_ALLOWED]:
        lines.append(
            f"Or accept this with train_data.allow_changed: [{', '.join(overridable)}]"
            + (", which cannot excuse lanes and canonical_nodes." if overridable != refused else "")
        )
    raise ValueError("\n".join(lines))


def fingerprint(
    config: DataConfig, readers: Sequence[Reader], tokenizer: Tokenizer, seed: int
) -> Fingerprint:
    """What the rows of a run depend on, each part by its key in the YAML."""
    found = {key: str(getattr(config, key)) for key in _PLAIN_KEYS}
    found |= {"seed": str(seed), "tokenizer": tokenizer.fingerprint, "masking": str(config.masking)}
    for reader in readers:
        source = config.sources[reader.name]
        key = f"{_SOURCES}{reader.name}"
        found[key] = f"index {reader.documents.index_fingerprint}"
        found[f"{key}.weight"] = str(source.weight)
        for name in ("min_document_tokens", "max_document_tokens"):
            if (value := getattr(source, name)) is not None:  # old checkpoints know no such key
                found[f"{key}.{name}"] = str(value)
    return found


def continued(
    state: LoaderState,
    fingerprint: Fingerprint,
    sources: tuple[str, ...],
    first_state: Callable[[int], LaneState],
) -> LoaderState:
    """The same place under a fingerprint that differs only in what the user allowed.

    Sources are matched by name: a new one begins at its beginning, what waits of a dropped one is
    lost. If sources or weights changed, shares of the tokens count from here on.
    """
    if state.fingerprint == fingerprint:
        return state
    shares = {key for key in state.fingerprint.keys() | fingerprint.keys() if ".weight" in key}
    same_shares = all(state.fingerprint.get(key) == fingerprint.get(key) for key in shares)
    was = {name: number for number, name in enumerate(state.sources)}
    now = {was[name]: number for number, name in enumerate(sources) if name in was}
    lanes = {}
    for lane, old in state.lanes.items():
        first = first_state(lane)
        lanes[lane] = LaneState(
            rows=old.rows,
            cursors=tuple(
                old.cursors[was[name]] if name in was else cursor
                for name, cursor in zip(sources, first.cursors, strict=True)
            ),
            drawn=old.drawn if same_shares else first.drawn,
            waiting=tuple(
                (now[source], document, piece)
                for source, document, piece in old.waiting
                if source in now
            ),
        )
    return LoaderState(fingerprint, state.step, state.rows, sources, lanes)


def _consequence(key: str) -> str:
    if not key.startswith(_SOURCES):
        return _CONSEQUENCES[key]
    if key.endswith(".weight"):
        return "from here on the sources' shares of the tokens are others"
    return "its documents are others, or are counted otherwise: some may come again, or never"
