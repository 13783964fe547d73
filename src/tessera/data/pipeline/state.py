"""Where a loader stands, and what must not change under it."""

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields

from tessera.data.config import MAY_CHANGE, DataConfig, MaskingConfig, SourceConfig
from tessera.data.pipeline.masking import WORD_TOKENS
from tessera.data.pipeline.pieces import PieceId
from tessera.data.pipeline.streams import Cursor, Reader
from tessera.files import JsonObject
from tessera.tokenizer import Tokenizer

Fingerprint = dict[str, str]
"""What the rows depend on beside the lanes' states: each value by its key in the YAML.

A key that a fingerprint lacks has the value of `DEFAULTS`: an option that was not there when a
checkpoint was written did what its default does now, so that new options break no resume.
"""

_REPEATED = "documents already trained on would come again, and others never"
_CONSEQUENCES = {
    "lanes": "saved positions belong to that number of lanes; " + _REPEATED,
    "canonical_nodes": "saved positions belong to that number of groups; " + _REPEATED,
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
_MASKING = "masking."
_WORD_TOKENS = "masking.most_word_tokens"
_NEVER_ALLOWED = ("lanes", "canonical_nodes")
_PLAIN_KEYS = [key for key in _CONSEQUENCES if key not in ("seed", "tokenizer", "masking")]
assert _CONSEQUENCES.keys() == {*_NEVER_ALLOWED, *MAY_CHANGE}


@dataclass(frozen=True)
class LaneState:
    """Everything a lane's next row depends on, beside what the fingerprint covers.

    Invariant: the rows already made, then `waiting`, then each source from its cursor onward hold
    every piece of the lane exactly once.
    """

    rows: int
    """Rows made: the next is number `rows * lanes + lane`."""
    cursors: tuple[Cursor, ...]
    drawn: tuple[int, ...]
    """Tokens drawn from each source, its head start included."""
    waiting: tuple[PieceId, ...] = ()
    """From the oldest to the newest."""

    def to_json(self) -> JsonObject:
        """Plain lists; documents are counted from the one before, so that numbers stay short."""
        last = [0] * len(self.cursors)
        waiting = []
        for source, document, piece in self.waiting:
            waiting += [source, document - last[source], piece]
            last[source] = document
        return {
            "rows": self.rows,
            "cursors": [_cursor_to_json(cursor) for cursor in self.cursors],
            "drawn": list(self.drawn),
            "waiting": waiting,
        }

    @classmethod
    def from_json(cls, plain: JsonObject) -> "LaneState":
        """The inverse of `to_json`."""
        last = [0] * len(plain["cursors"])
        waiting = []
        flat = iter(plain["waiting"])
        for source, step, piece in zip(flat, flat, flat, strict=True):
            last[source] += step
            waiting.append((source, last[source], piece))
        cursors = tuple(
            Cursor._make((*c[:4], tuple(c[4]), *(c[5:] or [0]))) for c in plain["cursors"]
        )
        return cls(plain["rows"], cursors, tuple(plain["drawn"]), tuple(waiting))


def _cursor_to_json(cursor: Cursor) -> list[object]:
    """Without what few sources have: states of other sources stay as they always were."""
    rare = [cursor.outside_documents] if cursor.outside_documents else []
    return [*cursor[:4], list(cursor.bad_shards), *rare]


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

    def to_json(self) -> JsonObject:
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
    def from_json(cls, plain: JsonObject) -> "LoaderState":
        """The inverse of `to_json`."""
        return cls(
            fingerprint=_by_named_values(plain["fingerprint"]),
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
    before, after = DEFAULTS | saved, DEFAULTS | now
    changed = [
        key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
    ]
    refused = [key for key in changed if _section(key) not in allowed or key in _NEVER_ALLOWED]
    if not refused:
        return
    lines = ["the data differ from those of the checkpoint:"]
    for key in refused:
        was, is_now = before.get(key, "absent"), after.get(key, "absent")
        lines.append(f"  train_data.{key}: was {was}, now {is_now}; {_consequence(key)}")
    lines.append("Set them back to continue exactly. Or start a new phase with `start_from`, whose")
    lines.append("data begin anew.")
    if overridable := [key for key in refused if key not in _NEVER_ALLOWED]:
        names = ", ".join(dict.fromkeys(map(_section, overridable)))
        lines.append(
            f"Or accept this with train_data.allow_changed: [{names}]"
            + (", which cannot excuse lanes and canonical_nodes." if overridable != refused else "")
        )
    raise ValueError("\n".join(lines))


def fingerprint(
    config: DataConfig, readers: Sequence[Reader], tokenizer: Tokenizer, seed: int
) -> Fingerprint:
    """What the rows of a run depend on, each part by its key in the YAML."""
    found = _options(config)
    found |= {"seed": str(seed), "tokenizer": tokenizer.fingerprint}
    for reader in readers:
        source = config.sources[reader.name]
        key = f"{_SOURCES}{reader.name}"
        found[key] = f"index {reader.documents.index_fingerprint}"
        found[f"{key}.weight"] = str(source.weight)
        for name in ("min_document_tokens", "max_document_tokens"):
            if (value := getattr(source, name)) is not None:  # old checkpoints know no such key
                found[f"{key}.{name}"] = str(value)
    return found


def _options(config: DataConfig) -> Fingerprint:
    """The part of a fingerprint that is written in the YAML and has defaults."""
    found = {key: str(getattr(config, key)) for key in _PLAIN_KEYS}
    found |= {
        f"{_MASKING}{f.name}": str(getattr(config.masking, f.name)) for f in fields(MaskingConfig)
    }
    if config.masking.whole_words:
        found[_WORD_TOKENS] = str(WORD_TOKENS)
    return found


DEFAULTS = _options(DataConfig(sources={"any": SourceConfig(local="")}))
DEFAULTS[_WORD_TOKENS] = "any"
"""What each option of a fingerprint is if nobody says otherwise.

Words of any length were masked whole before they were cut: runs that did so are not continued with
other masks unasked.
"""


def _by_named_values(saved: Fingerprint) -> Fingerprint:
    """A fingerprint whose masking is one text, as the first checkpoints have it, in today's form.

    The text is `str(MaskingConfig)`, such as "MaskingConfig(rate=0.3, over=Duration(value=5,
    unit='tok'))". It is taken apart as Python's grammar would, and nothing of it is evaluated.
    """
    text = saved.get("masking")
    if text is None:
        return saved
    named = {key: value for key, value in saved.items() if key != "masking"}
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call), text
    for keyword in call.keywords:
        value = keyword.value
        parts = value.keywords if isinstance(value, ast.Call) else [keyword]
        named[f"{_MASKING}{keyword.arg}"] = "".join(str(ast.literal_eval(p.value)) for p in parts)
    return named


def _section(key: str) -> str:
    """What `allow_changed` calls a key: masking's options change together."""
    return "masking" if key.startswith(_MASKING) else key


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
    shares = {
        key for key in state.fingerprint.keys() | fingerprint.keys() if key.endswith(".weight")
    }
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
        return _CONSEQUENCES[_section(key)]
    if key.endswith(".weight"):
        return "from here on the sources' shares of the tokens are others"
    return "its documents are others, or are counted otherwise: some may come again, or never"
