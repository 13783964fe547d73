"""Another mixture in the middle of a run: asked for, said in numbers, and the same everywhere."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice

import pytest
import tiny_run
from reference.data_batches import BATCH, SOURCES, TOKENIZER, data_config, run, state_of
from reference.data_fake_source import corpus as fake_corpus
from reference.data_fake_source import open_fake

from tessera.cli.check import describe
from tessera.config import ConfigError, decode
from tessera.data.config import SourceConfig
from tessera.data.loader import Loader
from tessera.training.config import RunConfig

MATH = SourceConfig(local="documents=300,longest=60", weight=0.5)
MORE = {"web": SOURCES["web"], "code": SOURCES["code"], "math": MATH}
WITHOUT_CODE = {"web": replace(SOURCES["web"], weight=0.5), "math": MATH}


def changed(sources, *, allow=("mixture",), **more):
    return data_config(sources=sources, allow_changed=allow, **more)


@pytest.fixture(scope="module")
def saved():
    """The state after six batches of web and code."""
    return state_of(run(None, 6)[1][-1])


@pytest.mark.parametrize("sources", [WITHOUT_CODE, MORE], ids=["code leaves", "math comes"])
def test_the_result_is_the_same_on_any_ranks_workers_and_interruptions(saved, sources):
    config = changed(sources)
    expected, states = run(saved, 12, config=config)
    assert sum(batch["source_tokens"]["math"] for batch in expected) > 0
    state, got, sizes = saved, [], [(4, 3), (2, 1), (1, 4), (4, 4)]
    for ranks, steps in sizes:
        some, after = run(state, steps, world_size=ranks, config=config)
        got, state = got + some, state_of(after[-1])
    assert got == expected
    assert state == state_of(states[-1])
    assert run(saved, 3, config=changed(sources, workers=2))[0] == expected[:3]


def pieces_of(state, steps, config):
    """The pieces of some batches, by lane and source name; and the state after them."""
    loader = Loader(
        *(config, BATCH, TOKENIZER), vocab_size=512, seed=17, state=state, open_source=open_fake
    )
    found, lanes = defaultdict(list), dict(loader.start.lanes)
    for *_, rows in islice(loader.steps(), steps):
        for row in rows:
            lanes[row.lane] = row.state
            for source, *piece in row.pieces:
                found[row.lane, loader.sources[source]].append(tuple(piece))
    end = replace(loader.start, step=loader.start.step + steps, lanes=lanes)
    end = replace(end, rows=sum(lane.rows for lane in lanes.values()))
    return found, state_of(json.dumps(end.to_json()))


def test_sources_keep_their_place_and_one_that_returns_goes_on_where_it_was_taken_away():
    """Every piece comes once: none is lost with the packers' buffers, none comes again."""
    plans = [data_config(), changed(WITHOUT_CODE), changed(MORE), changed(WITHOUT_CODE)]
    trained, state, parts = defaultdict(list), None, []
    for config in plans:
        part, state = pieces_of(state, 6, config)
        parts.append(part)
        for key, pieces in part.items():
            trained[key] += pieces
    assert all(any(name == "code" for _, name in parts[n]) for n in (0, 2))
    late = {lane for lane, name in parts[3] if name == "code"}
    assert not late, "what is taken away is taken away with the pieces of it that wait"
    places = {name: (state, number) for number, name in enumerate(state.sources)}
    places |= {parked.sources[0]: (parked, 0) for parked in state.parked}
    assert places.keys() == {"web", "math", "code"}
    for name, (where, number) in places.items():
        empty = sum(lane.cursors[number].empty_documents for lane in where.lanes.values())
        missing = 0
        for lane, place in where.lanes.items():
            waiting = [tuple(piece) for source, *piece in place.waiting if source == number]
            seen = Counter(trained[lane, name] + waiting)
            assert set(seen.values()) == {1}, f"{name} of lane {lane} repeats pieces"
            document, piece, *_ = place.cursors[number]
            missing += len(set(range(document + (piece > 0))) - {d for d, _ in seen})
        assert missing == empty, f"documents of {name} were lost"
        assert min(place.cursors[number].document for place in where.lanes.values()) > 3


def test_a_new_source_gets_its_share_from_the_change_on_and_does_not_catch_up():
    """After a past of any length; within a few pieces in each lane."""
    for past in (2, 40):
        state = state_of(run(None, past)[1][-1])
        config = changed(MORE)
        loader = Loader(
            *(config, BATCH, TOKENIZER), vocab_size=512, seed=17, state=state, open_source=open_fake
        )
        first = loader.start.lanes
        lanes = dict(first)
        for *_, rows in islice(loader.steps(), 30):
            lanes |= {row.lane: row.state for row in rows}
        for lane, after in lanes.items():
            tokens = [b - a for a, b in zip(first[lane].drawn, after.drawn, strict=True)]
            for share, drawn in zip((0.7, 0.3, 0.5), tokens, strict=True):
                assert abs(drawn - share / 1.5 * sum(tokens)) < 3 * 32 + 32 * 8, (past, lane)
        assert loader.changes[2] == "train_data.sources.math: new, 33.3 % of the tokens, " + (
            "from its beginning"
        )


def test_the_first_pieces_of_all_lanes_follow_the_new_shares(saved):
    """Lanes that all forgave their past alike would all begin with the same source."""
    loader = Loader(
        *(changed(WITHOUT_CODE), BATCH, TOKENIZER),
        **{"vocab_size": 512, "seed": 17, "state": saved, "open_source": open_fake},
    )
    behind = [lane.drawn[0] - lane.drawn[1] for lane in loader.start.lanes.values()]
    assert len(set(behind)) > 1


def test_a_change_that_nobody_asked_for_is_refused_in_numbers(saved):
    documents = {
        name: sum(lane.cursors[n].document for lane in saved.lanes.values())
        for n, name in enumerate(saved.sources)
    }
    with pytest.raises(ValueError) as caught:
        run(saved, 1, config=changed(WITHOUT_CODE, allow=()))
    said = str(caught.value)
    assert "train_data.sources.web: 70 % -> 50 % of the tokens, goes on after" in said
    assert "train_data.sources.math: new, 50 % of the tokens, from its beginning" in said
    assert "train_data.sources.code: 30 % -> taken away after" in said
    (code,) = [line for line in said.splitlines() if "sources.code:" in line]
    assert documents["code"] <= int(code.split("after ")[1].split()[0]) <= documents["code"] + 8
    assert "Or accept this with train_data.allow_changed: [mixture]" in said


def test_asking_for_another_mixture_excuses_no_other_documents(saved):
    def made_again(name, source, split, vocab_size):
        return fake_corpus(name, 400, index_fingerprint=f"new {name}")

    with pytest.raises(ValueError, match=r"sources.web: was index index, now index new web") as e:
        run(saved, 1, config=changed(WITHOUT_CODE), open_source=made_again)
    assert "allow_changed: [sources.web]" in str(e.value)


def test_weights_of_the_same_ratios_in_any_order_are_no_change(saved):
    expected, _ = run(saved, 6)
    sources = {
        "code": replace(SOURCES["code"], weight=3.0),
        "web": replace(SOURCES["web"], weight=7.0),
    }
    again, _ = run(saved, 6, config=data_config(sources=sources))
    assert again == expected


def test_a_source_that_returns_with_other_documents_begins_at_its_beginning(saved):
    _, states = run(saved, 2, config=changed(WITHOUT_CODE))
    without = state_of(states[-1])
    assert [parked.sources for parked in without.parked] == [("code",)]

    def loader_of(open_source):
        return Loader(
            *(changed(MORE), BATCH, TOKENIZER),
            **{"vocab_size": 512, "seed": 17, "state": without, "open_source": open_source},
        )

    def mended(name, source, split, vocab_size):
        opened = open_fake(name, source, split, vocab_size)
        return replace(opened, index_fingerprint="mended") if name == "code" else opened

    kept, new = loader_of(open_fake), loader_of(mended)
    number = kept.sources.index("code")
    assert kept.start.parked == new.start.parked == ()
    for lane, place in kept.start.lanes.items():
        assert place.cursors[number] == saved.lanes[lane].cursors[1]
        assert new.start.lanes[lane].cursors[number].document == 0
        assert all(source != number for source, *_ in new.start.lanes[lane].waiting)
    assert any("named again, 20 % of the tokens, goes on after" in line for line in kept.changes)
    assert any("with other documents, 20 % of the tokens, from" in line for line in new.changes)


def test_check_and_training_say_the_same_and_an_interruption_changes_nothing(tmp_path, capfd):
    corpus = tiny_run.make_corpus(tmp_path / "corpus", documents=60)
    plain = tiny_run.settings(corpus, tmp_path / "run", duration="6ba", evaluation__at_end=False)
    assert tiny_run.train(plain) == 0
    more = {"local": str(corpus / "web"), "weight": 1.0}

    def longer(duration, folder, **changes):
        sources = {**plain["train_data"]["sources"], "again": more}
        made = tiny_run.settings(
            corpus, folder, duration=duration, evaluation__at_end=False, **changes
        )
        made["train_data"]["sources"] = sources
        return made

    def page(made):
        path = tiny_run.write_yaml(tmp_path / "run.yaml", made)
        return describe(decode(RunConfig, made, "test"), str(path), 1)

    unasked = longer("12ba", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"allow_changed: \[mixture\]") as by_check:
        page(unasked)
    with pytest.raises(ValueError, match=r"allow_changed: \[mixture\]") as by_main:
        tiny_run.train(unasked)
    said = "train_data.sources.again: new, 50 % of the tokens, from its beginning"
    assert said in str(by_check.value) and said in str(by_main.value)

    (tmp_path / "twin").mkdir()
    for path in (tmp_path / "run").rglob("*"):
        target = tmp_path / "twin" / path.relative_to(tmp_path / "run")
        if path.is_dir():
            target.mkdir()
        else:
            target.write_bytes(path.read_bytes())
    asked = {"train_data__allow_changed": ["mixture"]}
    assert said in page(longer("12ba", tmp_path / "run", **asked))
    capfd.readouterr()
    assert tiny_run.train(longer("12ba", tmp_path / "run", **asked)) == 0
    assert f"changed since: {said}" in capfd.readouterr().out
    for duration in ("8ba", "12ba"):
        assert tiny_run.train(longer(duration, tmp_path / "twin", **asked)) == 0
    records = [tiny_run.untimed(tiny_run.metrics(tmp_path / name)) for name in ("run", "twin")]
    assert records[0] == records[1]
    assert sum(record["source_tokens"].get("again", 0) for record in records[0]) > 0
