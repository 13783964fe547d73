"""Going on from a saved place with other sources, or other shares, than it was saved with.

A changed mixture is a function of the saved state and the new configuration, lane by lane, so that
it is the same on any number of ranks and after any interruption:

- a source that stays keeps its place, and its pieces that wait;
- a new one starts at its beginning;
- one that is taken away is parked: its place, and the pieces of it that waited, stay in the state,
  and should it be named again with the same documents it goes on there;
- shares of the tokens count from the change on, as at the beginning of a run: nobody catches up
  with the past, a new source least of all. The pieces that wait were drawn at the old shares and
  come first.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from tessera.data.config import DataConfig
from tessera.data.pipeline.fingerprint import (
    Fingerprint,
    check_fingerprint,
    documents_of,
    fingerprint,
    shares,
)
from tessera.data.pipeline.state import LaneState, LoaderState
from tessera.data.sources.source import open_source
from tessera.tokenizer import Tokenizer


def in_order_of(config: DataConfig, state: LoaderState) -> DataConfig:
    """The configuration, its sources in the order in which the state numbers them; new ones last.

    Numbers also settle who draws first of two sources that are equally far behind.
    """
    known = [name for name in state.sources if name in config.sources]
    ordered = {name: config.sources[name] for name in known} | config.sources
    return replace(config, sources=ordered)


def continued(
    state: LoaderState,
    found: Fingerprint,
    config: DataConfig,
    first_state: Callable[[int], LaneState],
) -> LoaderState:
    """The same place under the present configuration, whose sources are `in_order_of` the state.

    Args:
        state: all lanes.
        found: the present fingerprint.
        config: the present configuration.
        first_state: a lane that has made no rows, under the present configuration.

    Raises:
        ValueError: Something has changed that is not in `allow_changed`.
    """
    check_fingerprint(state.fingerprint, found, config.allow_changed, mixture_changes(state, found))
    if state.fingerprint == found:
        return state
    now = tuple(shares(found))
    places = {name: (state, number) for number, name in enumerate(state.sources) if name in now}
    places |= {parked.sources[0]: (parked, 0) for parked in _returning(state, found)}
    same_shares = shares(state.fingerprint) == shares(found)
    lanes = {}
    for lane, old in state.lanes.items():
        first = first_state(lane)
        waiting = [
            (now.index(state.sources[source]), document, piece)
            for source, document, piece in old.waiting
            if state.sources[source] in places
        ]
        cursors = list(first.cursors)
        for number, name in enumerate(now):
            if name not in places:
                continue
            where, its_number = places[name]
            cursors[number] = where.lanes[lane].cursors[its_number]
            if where is not state:
                waiting += [
                    (number, document, piece) for _, document, piece in where.lanes[lane].waiting
                ]
        lanes[lane] = LaneState(
            rows=old.rows,
            cursors=tuple(cursors),
            drawn=old.drawn if same_shares else first.drawn,
            waiting=tuple(waiting),
        )
    parked = [p for p in state.parked if p.sources[0] not in now]
    parked += [_parked(state, name) for name in state.sources if name not in now]
    return LoaderState(found, state.step, state.rows, now, lanes, tuple(parked))


def mixture_changes(state: LoaderState, found: Fingerprint) -> list[str]:
    """What becomes of each source whose share changes, in numbers; empty if none does."""
    before, after = shares(state.fingerprint), shares(found)
    if before == after:
        return []
    lines = {}
    returning = {parked.sources[0]: parked for parked in _returning(state, found)}
    parked = {parked.sources[0] for parked in state.parked}
    for name in dict.fromkeys((*before, *after)):
        share = f"{_percent(after[name])} of the tokens" if name in after else ""
        if name in before and name in after:
            moved = "stays at" if before[name] == after[name] else f"{_percent(before[name])} ->"
            documents, _ = _place(state, name)
            lines[f".{name}"] = f"{moved} {share}, goes on after {documents:,} documents"
        elif name in before:
            documents, pieces = _place(state, name)
            lines[f".{name}"] = (
                f"{_percent(before[name])} -> taken away after {documents:,} documents; "
                f"{pieces:,} pieces of it that wait are kept for its return"
            )
        elif name in returning:
            documents, pieces = _place(returning[name], name)
            lines[f".{name}"] = (
                f"named again, {share}, goes on after {documents:,} documents, with {pieces:,} "
                "pieces that waited"
            )
        else:
            again = "named again with other documents" if name in parked else "new"
            lines[f".{name}"] = f"{again}, {share}, from its beginning"
    waiting = sum(_place(state, name)[1] for name in before if name in after)
    lines[""] = (
        f"shares count from step {state.step} on, nothing of the past is caught up with; "
        f"{waiting:,} pieces that wait were drawn at the old shares and come first"
    )
    return [f"train_data.sources{key}: {text}" for key, text in lines.items()]


def examine_changes(
    state: LoaderState, config: DataConfig, tokenizer: Tokenizer, seed: int
) -> list[str]:
    """What would become of the mixture, without a loader; sources that are remote are not asked.

    Raises:
        ValueError: As `continued`, or a source cannot be opened.
    """
    indexes = {}
    for name, source in in_order_of(config, state).sources.items():
        if source.weight > 0 and source.remote is None:
            indexes[name] = open_source(name, source, source.split, None).index_fingerprint
        elif source.weight > 0:
            known = [state, *state.parked]
            saved = [place.fingerprint.get(f"sources.{name}", "") for place in known]
            indexes[name] = next(filter(None, saved), "").removeprefix("index ")
    found = fingerprint(config, indexes, tokenizer, seed if config.seed is None else config.seed)
    changes = mixture_changes(state, found)
    check_fingerprint(state.fingerprint, found, config.allow_changed, changes)
    return changes


def _returning(state: LoaderState, found: Fingerprint) -> list[LoaderState]:
    """The parked sources that are named again, with the documents they had."""
    return [
        parked
        for parked in state.parked
        if (its_own := documents_of(found, parked.sources[0])) and its_own == parked.fingerprint
    ]


def _parked(state: LoaderState, name: str) -> LoaderState:
    """One source of a state, as a state of its own."""
    number = state.sources.index(name)
    lanes = {
        lane: LaneState(
            rows=old.rows,
            cursors=(old.cursors[number],),
            drawn=(old.drawn[number],),
            waiting=tuple(
                (0, document, piece) for source, document, piece in old.waiting if source == number
            ),
        )
        for lane, old in state.lanes.items()
    }
    own = documents_of(state.fingerprint, name)
    return LoaderState(own, state.step, state.rows, (name,), lanes)


def _place(state: LoaderState, name: str) -> tuple[int, int]:
    """How many documents of a source all lanes have begun, and how many of its pieces wait."""
    number = state.sources.index(name)
    cursors = [lane.cursors[number] for lane in state.lanes.values()]
    documents = sum(cursor.document + (cursor.piece > 0) for cursor in cursors)
    waiting = sum(piece[0] == number for lane in state.lanes.values() for piece in lane.waiting)
    return documents, waiting


def _percent(share: Fraction) -> str:
    return f"{100 * float(share):.3g} %"
