import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml

import tessera
from tessera.quantities import short_time
from tessera.reporting.canvas import THEME, distinguished, phase_edges, short_number, spread
from tessera.reporting.metrics import read_chain
from tessera.reporting.plots import loss_figure, running_mean, wait_shares
from tessera.reporting.report import summary_table, write_report

WEIGHTS = {"web": 0.4, "code": 0.4, "science": 0.2}


def records_of_a_phase(seed=1, steps=200, *, start_loss=9.0, end_loss=3.5, rows=8, row_tokens=1024):
    """What a run of three sources might have written: noise, a ramp of rows, evaluations."""
    draw = np.random.default_rng(seed)
    tokens = 0
    for step in range(1, steps + 1):
        rows_now = min(rows, 2 + 2 * (8 * step // steps))
        fill = 0.995 + 0.004 * draw.random()
        added = round(rows_now * row_tokens * fill)
        tokens += added
        progress = step / steps
        loss = end_loss + (start_loss - end_loss) * math.exp(-6 * progress)
        loss *= 1 + 0.02 * draw.standard_normal()
        seconds = 0.2 * (1 + 0.1 * draw.random()) * rows_now / rows
        by_source = {name: round(added * weight) for name, weight in WEIGHTS.items()}
        by_source[next(iter(by_source))] += added - sum(by_source.values())
        yield {
            "kind": "step",
            "step": step,
            "tokens": tokens,
            "loss": loss,
            "masked_tokens": round(0.3 * added),
            "rows": rows_now,
            "documents": 12 * rows_now,
            "lr": 3e-3 * min(1, 10 * progress),
            "weight_decay": 1e-5,
            "grad_norm": 0.4 + 2 * math.exp(-8 * progress) + 0.1 * draw.random(),
            "tokens_per_second": added / seconds,
            "mfu": None,
            "loader_wait_seconds": 0.05 if step == 1 else 2e-4 * draw.random(),
            "step_seconds": seconds,
            "packing_fill": fill,
            "digest": "0" * 64,
            "source_tokens": by_source,
            "source_epochs": dict.fromkeys(WEIGHTS, step // 150),
            "mask_rate": 0.3 + 0.01 * draw.standard_normal(),
            "skipped": None,
        }
        if step % max(steps // 5, 1) == 0:
            yield {
                "kind": "evaluation",
                "step": step,
                "tokens": tokens,
                "sources": {
                    name: {
                        "loss": loss * scale,
                        "accuracy": 0.6 / scale * progress,
                        "masked_tokens": 4500,
                    }
                    for name, scale in (("web", 1.02), ("code", 0.72), ("science", 0.93))
                },
                "seconds": 2.5,
            }


def write_run(folder, records, config=None):
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    if config is None:
        sources = {name: {"local": name, "weight": w} for name, w in WEIGHTS.items()}
        config = {
            "run_folder": str(folder.name),
            "train_data": {
                "sources": sources,
                "row_tokens": 1024,
                "masking": {"rate": 0.3, "final_rate": None},
            },
            "evaluation": {"masking_rate": 0.15},
        }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture
def chain(tmp_path):
    demo = tmp_path / "demo"
    return [
        write_run(demo / "phase1", records_of_a_phase(1, 200)),
        write_run(demo / "phase2", records_of_a_phase(2, 60, start_loss=4, end_loss=3.3)),
        write_run(demo / "phase3", records_of_a_phase(3, 60, start_loss=3.4, end_loss=3.0)),
    ]


def page_of(folders, tmp_path, name="report.html"):
    write_report(folders, tmp_path / name)
    return (tmp_path / name).read_text(encoding="utf-8")


def steps_of(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"]


class Elements(HTMLParser):
    """Every element of a page with its attributes, and whether all are closed."""

    VOID = {"meta", "br", "img", "input", "hr"}

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_numbers_of_a_phase_are_those_of_its_records(chain):
    phases = read_chain(chain)
    before = 0
    for folder, phase in zip(chain, phases, strict=True):
        steps = steps_of(folder)
        seconds = sum(step["step_seconds"] for step in steps)
        slots = sum(step["rows"] * 1024 for step in steps)
        assert phase.steps == len(steps)
        assert phase.tokens == steps[-1]["tokens"]
        assert phase.tokens_before == before
        assert phase.seconds == pytest.approx(seconds)
        assert phase.tokens_per_second == pytest.approx(phase.tokens / seconds)
        assert phase.fill == pytest.approx(phase.tokens / slots, rel=1e-4)
        waited = sum(step["loader_wait_seconds"] for step in steps)
        assert phase.wait_share == pytest.approx(waited / seconds)
        assert wait_shares(phase)[0] == steps[0]["loader_wait_seconds"] / steps[0]["step_seconds"]
        assert sum(phase.source_tokens().values()) == phase.tokens
        assert phase.wanted_shares() == pytest.approx(WEIGHTS)
        assert phase.source_epochs() == dict.fromkeys(WEIGHTS, len(steps) // 150)
        assert math.isnan(phase.flop_utilisation)
        spent = 2.5 * len(phase.evaluations)
        assert phase.evaluation_share == pytest.approx(spent / (spent + seconds))
        before += steps[-1]["tokens"]


def test_the_table_shows_the_last_validation_loss_of_every_phase(chain):
    lines = {
        line.split("  ")[0] or line.split()[0]: line for line in summary_table(chain).split("\n")
    }
    finals = []
    for folder in chain:
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["kind"] == "evaluation"
        finals.append(last["sources"])
    for name in WEIGHTS:
        assert lines[name].split() == [name, *(f"{final[name]['loss']:.3f}" for final in finals)]
    assert lines["steps"].split()[1:] == ["200", "60", "60"]
    assert lines["phase1"].split() == ["phase1", "phase2", "phase3"]


def test_the_curves_end_where_the_records_end(chain):
    phases = read_chain(chain)
    axes = loss_figure(phases).axes[0]
    losses = [step["loss"] for step in steps_of(chain[-1])]
    raw = [line for line in axes.lines if len(line.get_ydata()) == len(losses)]
    assert any(np.array_equal(line.get_ydata(), losses) for line in raw)
    total = sum(phase.tokens for phase in phases)
    shares = [phase.tokens / total for phase in phases]
    assert min(shares) > 0.15, "no phase is stretched here"
    boundaries = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert boundaries == pytest.approx(np.cumsum(shares)[:-1])
    ticks = dict(zip(axes.get_xticks(), axes.get_xticklabels(), strict=True))
    for place, tokens in ((0, 0), (boundaries[0], phases[0].tokens), (1, total)):
        assert ticks[place].get_text() == short_number(tokens)
    for name, color in zip(WEIGHTS, ("source-0", "source-1", "source-2"), strict=True):
        *_, last = (line for line in axes.lines if line.get_color() == THEME[color][0])
        final = phases[-1].evaluations[-1].loss[name]
        assert (last.get_xdata()[-1], last.get_ydata()[-1]) == pytest.approx((1.0, final))


def test_a_page_needs_nothing_but_itself(chain, tmp_path):
    page = page_of(chain, tmp_path)
    elements = Elements(page).found
    assert {tag for tag, _ in elements}.isdisjoint({"script", "link", "iframe", "img", "object"})
    names = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(names) == len(set(names)), "one figure would use another's shapes"
    targets = re.findall(r"url\(#([^)]*)\)", page)
    for _, attributes in elements:
        assert "src" not in attributes
        for key in ("href", "xlink:href"):
            if key in attributes:
                assert attributes[key].startswith("#")
                targets.append(attributes[key][1:])
    assert len(targets) > 20 and set(targets) <= set(names)
    assert "@import" not in page
    assert len(re.findall(r"url\((?!#)", page)) == 0


def test_every_colour_follows_the_page_into_the_dark(chain, tmp_path):
    page = page_of(chain, tmp_path)
    style, _, body = page.partition("</style>")
    assert "prefers-color-scheme: dark" in style
    drawings = re.findall(r"<svg.*?</svg>", body, flags=re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        assert re.findall(r"#[0-9a-f]{6}\b", drawing) == []
        assert set(re.findall(r"var\(--([^)]*)\)", drawing)) <= set(THEME)


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(chain, tmp_path, monkeypatch):
    page = page_of(chain, tmp_path)
    monkeypatch.setitem(matplotlib.rcParams, "axes.linewidth", 7.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", None)
    assert page_of(chain, tmp_path, "again.html") == page
    elsewhere = tmp_path / "elsewhere.html"
    code = (
        "import sys; from tessera.reporting.report import write_report\n"
        "write_report(sys.argv[2:], sys.argv[1])\n"
        "sys.exit('torch' in sys.modules)"
    )
    source = str(Path(tessera.__file__).parents[1])
    relative = [os.path.relpath(folder, tmp_path) for folder in chain]
    subprocess.run(
        [sys.executable, "-c", code, str(elsewhere), *relative],
        cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": source}, check=True,
    )  # fmt: skip
    assert elsewhere.read_text(encoding="utf-8") == page


def test_settings_are_folded_at_the_end_and_the_summary_comes_first(chain, tmp_path):
    page = page_of(chain, tmp_path)
    assert page.count("<details>") == 3
    order = [
        page.index(text) for text in ("<h1>demo: ", "3 phases: ", "<svg", "Sources", "<details>")
    ]
    assert order == sorted(order)
    tokens = sum(steps_of(folder)[-1]["tokens"] for folder in chain)
    assert f"3 phases: {short_number(tokens)} tokens in 320 steps" in page
    assert "Training predicts 30% of the tokens and validation 15%" in page
    assert "drawn wider" not in page


def test_a_line_that_a_kill_cut_off_is_reported_and_left_out(chain, tmp_path):
    whole = page_of(chain, tmp_path)
    before = summary_table(chain)
    with (chain[1] / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "step": 61, "tok')
    note = "phase2: the last line of metrics.jsonl (line 66) is cut off and left out."
    assert summary_table(chain) == f"{before}\n\n{note}"
    page = page_of(chain, tmp_path)
    assert page.replace(f'<p class="note">{note}</p>', "") == whole


@pytest.mark.parametrize(
    "line", [b"{torn", b"[]", b"17", b"\x00\x00", b"\xff\xfe", b'{"kind": "step", "step": 7}', b""]
)
def test_a_garbled_line_is_named(chain, line):
    path = chain[0] / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines[4] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line 5: "):
        read_chain(chain)


@pytest.mark.parametrize(
    ("field", "damage"),
    [(f, d) for f in ("step", "tokens", "loss") for d in ("missing", "many", True)]
    + [("step", None), ("tokens", None)],
)
def test_a_step_without_what_every_step_has_is_named(tmp_path, field, damage):
    records = list(records_of_a_phase(steps=5))
    records[2][field] = damage
    if damage == "missing":
        del records[2][field]
    folder = write_run(tmp_path / "run", records)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 3: .*'{field}'"):
        read_chain([folder])


def test_what_is_not_a_run_is_refused_with_the_way_out(chain, tmp_path):
    demo = chain[0].parent
    inner = re.escape(f"name its phases in order: {chain[0]} {chain[1]} {chain[2]}")
    with pytest.raises(ValueError, match=rf"{re.escape(str(demo))}: no metrics.jsonl.*{inner}"):
        read_chain([demo])
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_chain([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="at least one"):
        read_chain([])
    with pytest.raises(ValueError, match="more than once"):
        read_chain([chain[0], chain[1], chain[0] / ".." / chain[0].name])
    with pytest.raises(ValueError, match="is a folder"):
        write_report(chain, tmp_path)
    for content in ("", '{"kind": "evaluation", "step": 1, "tokens": 9, "sources": {}}\n', "{"):
        (chain[1] / "metrics.jsonl").write_text(content)
        with pytest.raises(ValueError, match=r"phase2.metrics\.jsonl: no step recorded"):
            read_chain(chain)


@pytest.mark.parametrize("text", ["a: [1", "- a", "\x00"])
def test_a_damaged_configuration_is_named(chain, text):
    (chain[2] / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"phase3.config\.yaml: "):
        read_chain(chain)


def test_a_run_that_recorded_little_still_has_a_report(tmp_path):
    records = [
        {"kind": "step", "step": i + 1, "tokens": 10 * (i + 1), "loss": 5.0} for i in range(3)
    ]
    folder = write_run(tmp_path / "bare", [*records, {"kind": "something new"}])
    (folder / "config.yaml").unlink()
    page = page_of([folder], tmp_path)
    assert len(re.findall("<svg", page)) == 2, "the loss alone, for wide and narrow screens"
    assert "One phase: 30 tokens in 3 steps." in page
    table = summary_table([folder])
    assert "no config.yaml" in table and "no evaluation was recorded" in table
    assert "\u2013" not in table


def test_steps_without_a_finite_loss_are_counted_not_drawn(tmp_path):
    records = list(records_of_a_phase(steps=50))
    for record in records:
        if record["kind"] == "step" and record["step"] in (11, 12, 13):
            record["loss"] = None
            record["grad_norm"] = float("inf")
    folder = write_run(tmp_path / "run", records)
    (folder / "spikes.jsonl").write_text(
        '{"step": 11, "why": "non-finite", "action": "skip"}\n{"step": 12, "w\n'
        '{"step": 40, "why": "spike", "action": "record"}\n'
        '{"step": 99, "why": "spike", "action": "skip"}\n'
    )
    table = summary_table([folder])
    assert "3 steps have no finite loss" in table
    assert "unusual steps (non-finite, skipped): 11." in table
    assert "lines of spikes.jsonl cut off and left out: 1." in table
    assert "unusual steps (spike, trained on all the same): 40." in table
    assert "99" not in table.split("unusual", 1)[1]
    assert "nan" not in page_of([folder], tmp_path).lower().split("<svg", 1)[1]


@pytest.mark.parametrize("until", [None, -20])
def test_steps_trained_again_after_a_restart_count_once(tmp_path, until):
    once = list(records_of_a_phase(1, steps=50))
    lost = list(records_of_a_phase(9, steps=50))
    cut = next(i for i, record in enumerate(once) if record["step"] == 31)
    assert lost[cut + 10]["kind"] == "evaluation", "an evaluation is lost too"
    folder = write_run(tmp_path / "run", lost[: cut + 11] + once[cut:until])
    alone = write_run(tmp_path / "undisturbed", lost[:cut] + once[cut:until])
    phase, expected = read_chain([folder])[0], read_chain([alone])[0]
    assert phase.columns.keys() == expected.columns.keys()
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(phase.columns[name], column)
    assert phase.evaluations == expected.evaluations
    assert phase.notes == ["steps 31 to 40 were trained again after a restart"]


def test_names_cannot_break_the_page(tmp_path, monkeypatch):
    odd = '$x$&<script>alert(1)</script>"%s{}'
    monkeypatch.setitem(WEIGHTS, odd, 0.2)
    records = list(records_of_a_phase(steps=20))
    for record in records:
        if record["kind"] == "evaluation":
            record["sources"][odd] = record["sources"]["web"]
    folder = write_run(tmp_path / "<b>run</b> & $x$", records)
    page = page_of([folder], tmp_path)
    assert {tag for tag, _ in Elements(page).found}.isdisjoint({"script"})
    assert "<script" not in page and "<b>run" not in page
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert sum("$x$&amp;" in drawing for drawing in drawings) == 3, "as text, not as mathematics"


def test_an_old_evaluation_is_not_passed_off_as_the_end(tmp_path):
    records = [r for r in records_of_a_phase(steps=50) if r["kind"] == "step" or r["step"] <= 30]
    folder = write_run(tmp_path / "run", records)
    of = records[-1]["tokens"]
    [at] = [r["tokens"] for r in records if r["kind"] == "evaluation" and r["step"] == 30]
    assert f"not from its end, but at {short_number(at)} of {short_number(of)}" in summary_table(
        [folder]
    )


@pytest.mark.parametrize(
    ("planned", "said"),
    [("2_000_000tok", "335k of 2M tokens"), ("400ba", "50 of 400 steps"), ("50ba", None)],
)
def test_a_phase_that_is_not_done_says_so(tmp_path, planned, said):
    records = list(records_of_a_phase(steps=50))
    folder = write_run(tmp_path / "run", records, {"duration": planned})
    table = summary_table([folder])
    assert said is None or f"run: it has trained {said}." in table
    assert ("it has trained" in table) == (said is not None)


def test_epochs_are_fractions_and_of_an_older_record_a_bound(tmp_path):
    records = list(records_of_a_phase(steps=5))
    old = page_of([write_run(tmp_path / "old", records)], tmp_path)
    assert "<td>under 1</td>" in old
    for record in records:
        if record["kind"] == "step":
            record["epochs_read"] = dict.fromkeys(WEIGHTS, 0.148 * record["step"])
    new = page_of([write_run(tmp_path / "new", records)], tmp_path)
    assert "<td>0.74</td>" in new and "<td>under" not in new


def test_a_falling_masking_rate_is_drawn_and_a_constant_one_is_not(tmp_path, chain):
    assert "Masking rate" not in page_of(chain, tmp_path)
    config = {"train_data": {"masking": {"rate": 0.3, "final_rate": 0.1}}}
    folder = write_run(tmp_path / "falling", records_of_a_phase(steps=20), config)
    assert "Masking rate" in page_of([folder], tmp_path)


def test_a_long_run_is_drawn_with_few_points(tmp_path):
    folder = write_run(tmp_path / "long", records_of_a_phase(steps=6000))
    page = page_of([folder], tmp_path)
    assert len(page) < 600_000
    losses = [step["loss"] for step in steps_of(folder)]
    band = loss_figure(read_chain([folder])).axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == min(losses) and band.max() == max(losses)


class Length:
    """A phase of which only the length matters."""

    def __init__(self, tokens):
        self.tokens = tokens


def test_a_short_phase_is_still_wide_enough_to_see():
    edges, stretched = phase_edges([Length(t) for t in (1719e9, 250e9, 50e9)])
    assert stretched
    assert np.diff(edges).tolist() == pytest.approx([0.7, 0.15, 0.15])
    edges, stretched = phase_edges([Length(t) for t in (2, 1, 1)])
    assert not stretched and edges == pytest.approx((0, 0.5, 0.75, 1))
    edges, _ = phase_edges([Length(t) for t in [1e12] + [1] * 11])
    assert min(np.diff(edges)) == pytest.approx(0.6 / 12) and edges[-1] == 1


@pytest.mark.parametrize("window", [1, 2, 5, 10, 60])
def test_a_running_mean_is_the_mean_of_what_is_near(window):
    values = np.random.default_rng(0).standard_normal(50)
    smooth = running_mean(values, window)
    for i in range(50):
        near = values[max(0, i - (window - 1) // 2) : i + window // 2 + 1]
        assert smooth[i] == pytest.approx(near.mean())


@pytest.mark.parametrize(
    "places", [[0.5] * 4, [0, 0, 1, 1], [0.2, 0.9, 0.21, 0.88], [0.3], [1.2, -3]]
)
def test_labels_stay_apart_in_order_and_inside(places):
    moved = spread(places, 0.1)
    assert min(np.diff(sorted(moved)), default=1) >= 0.1 - 1e-5
    assert min(moved) >= -1e-9 and max(moved) <= 1 + 1e-9
    assert np.array_equal(np.argsort(moved, kind="stable"), np.argsort(places, kind="stable"))
    apart = [0.1, 0.5, 0.95]
    assert spread(apart, 0.1) == apart


def test_phase_names_are_cut_where_they_are_alike():
    names = ["phase1", "phase2_context", "phase3"]
    assert distinguished(names, [20, 20, 20]) == names
    assert distinguished(names, [20, 5, 5]) == ["1", "2_co\u2026", "3"]


def test_numbers_are_written_short():
    values = [0, 0.5, 950, 999.6, 12_345, 999_949, 999_999, 4.718e6, 1.719e12, 2.5e15]
    texts = ["0", "0.5", "950", "1k", "12.3k", "1e+03k", "1M", "4.72M", "1.72T", "2.5e+15"]
    texts[5] = "1M"
    assert [short_number(value) for value in values] == texts
    seconds = [0.5, 59, 60, 185, 3600, 7859, 172_000, 180_000, 1e7, math.nan]
    texts = ["0.5 s", "59 s", "1 min 0 s", "3 min 5 s", "1 h 0 min", "2 h 10 min", "47 h 46 min"]
    assert [short_time(value) for value in seconds] == [*texts, "2 d 2 h", "115 d 17 h", "\u2013"]


def spiked(records, step=150, times=80.0):
    for record in records:
        if record["kind"] == "step" and record["step"] == step:
            record["grad_norm"] *= times
            record["loss"] *= 2
    return records


def test_a_spike_is_told_in_words_and_ringed(tmp_path):
    calm = write_run(tmp_path / "calm", records_of_a_phase(1, 200))
    assert "reached" not in summary_table([calm])
    records = spiked(list(records_of_a_phase(1, 200)))
    (norm,) = (r["grad_norm"] for r in records if r["kind"] == "step" and r["step"] == 150)
    folder = write_run(tmp_path / "spiked", records)
    table = summary_table([folder])
    assert f"the gradient norm reached {norm:.3g} at step 150, where 0.5" in table
    assert "the training loss reached" in table and "at step 150" in table
    page = page_of([folder], tmp_path)
    assert f"reached {norm:.3g} at step 150" in page.split("<svg", 1)[0]
    rings = [p.count("stroke: var(--source-1)") for p in re.findall(r"<svg.*?</svg>", page, re.S)]
    assert sum(rings) > sum(
        p.count("stroke: var(--source-1)")
        for p in re.findall(r"<svg.*?</svg>", page_of([calm], tmp_path), re.S)
    )


def test_tables_and_pictures_can_be_saved(chain, tmp_path):
    buttons = [a for tag, a in Elements(page_of(chain, tmp_path)).found if tag == "button"]
    names = [button["data-save"] for button in buttons]
    assert {"loss.svg", "gradient-norm.svg", "summary.csv", "sources.csv"} <= set(names)


def test_what_a_run_ran_on_is_on_its_page(tmp_path):
    folder = write_run(tmp_path / "run", records_of_a_phase(steps=5))
    assert "Hardware" not in page_of([folder], tmp_path)
    start = {"after_step": 3, "ranks": 8, "device": "H100", "versions": {"torch": "2.15.0"}}
    (folder / "machine.json").write_text(json.dumps({"starts": [start]}))
    page = page_of([folder], tmp_path)
    assert "Hardware and versions" in page and "torch 2.15.0" in page and "8 \u00d7 H100" in page
    (folder / "machine.json").write_text("{torn")
    assert "machine.json is damaged" in page_of([folder], tmp_path)


def test_runs_are_compared_over_tokens_operations_and_time(tmp_path, monkeypatch, capsys):
    from tessera.cli.main import main

    monkeypatch.chdir(tmp_path)
    runs = []
    for number, name in enumerate("ab"):
        model = {"hidden_size": 32, "num_attention_heads": 2}
        settings = {"optimizer": {"lr": 10.0**-number}, "seed": 1, "model": model}
        records = records_of_a_phase(number, 60, end_loss=2.5 - number)
        runs.append(str(write_run(tmp_path / name, records, settings)))
    assert main(["report", *runs, "--compare"]) == 0
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    for axis in ("tokens", "operations", "time"):
        assert f"Validation loss over {axis}" in page and f"Training loss over {axis}" in page
    settings = page[page.index("Settings that differ") :]
    assert "optimizer.lr" in settings and "seed" not in settings
    losses = [np.mean(list(read_chain([run])[0].final_evaluation().loss.values())) for run in runs]
    assert f"{losses[0]:.3f} in a and {losses[1]:.3f} in b, the mean over" in page
    names = [a["id"] for _, a in Elements(page).found if "id" in a]
    assert len(names) == len(set(names))
    assert main(["report", runs[0], "--compare"]) == 2
    assert "name two runs" in capsys.readouterr().err


def test_operations_of_a_run_are_those_of_its_steps(tmp_path):
    from tessera.cli.report import operations_of
    from tessera.model.config import ModelConfig
    from tessera.model.flops import needed_flops

    records = list(records_of_a_phase(steps=20))
    folder = write_run(tmp_path / "run", records, {"model": {"hidden_size": 96}})
    (phase,) = read_chain([folder])
    steps = [record for record in records if record["kind"] == "step"]
    tokens, masked = (sum(s[k] for s in steps) for k in ("masked_tokens", "masked_tokens"))
    tokens = steps[-1]["tokens"]
    length = tokens / sum(s["documents"] for s in steps)
    expected = needed_flops(
        ModelConfig(hidden_size=96), tokens, masked, lambda most: tokens * min(length, most or 1e9)
    )
    assert operations_of(phase) == pytest.approx(expected)
    assert math.isnan(operations_of(read_chain([write_run(tmp_path / "b", records)])[0]))


def test_a_run_is_followed_until_it_ends(tmp_path):
    """Another process trains there: it holds the lock, writes a step more, and ends."""
    folder = write_run(tmp_path / "run", records_of_a_phase(steps=5))
    code = (
        "import sys, time; from pathlib import Path; from tessera.training import run_folder\n"
        "folder = Path(sys.argv[1]); held = run_folder.lock(folder); print('held', flush=True)\n"
        "page = folder / 'report.html'\n"
        "while not page.exists(): time.sleep(0.05)\n"
        "early = page.read_text(); (folder / 'early.html').write_text(early)\n"
        "lines = (folder / 'metrics.jsonl').read_text().splitlines()\n"
        "step = next(line for line in reversed(lines) if '\"step\"' in line and 'digest' in line)\n"
        "with (folder / 'metrics.jsonl').open('a') as file:\n"
        "    file.write(step.replace('\"step\": 5', '\"step\": 6') + '\\n')\n"
        "held.release()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tessera.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=environment
    ) as training:
        assert training.stdout.readline() == b"held\n"
        done = subprocess.run(
            [sys.executable, "-m", "tessera.cli.main", "report", str(folder), "--follow", "1"],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    early, last = ((folder / f"{name}.html").read_text() for name in ("early", "report"))
    assert 'http-equiv="refresh" content="1"' in early and "in 5 steps" in early
    assert "http-equiv" not in last and "in 6 steps" in last


def with_probes(records):
    """The same records with those of probes after every 50th step."""
    found = []
    for record in records:
        found.append(record)
        if record["kind"] == "step" and record["step"] % 50 == 0:
            part = record["step"] / 200
            found.append(
                {
                    "kind": "probes",
                    "step": record["step"],
                    "tokens": record["tokens"],
                    "position": {
                        "0-127": {"loss": 5 - part, "accuracy": 0.2, "masked_tokens": 90},
                        "128-255": {"loss": 4 - part, "accuracy": 0.3, "masked_tokens": 9},
                    },
                    "context": {"loss": 3 - part, "loss_with_512_tokens": 3.0, "gain": part},
                    "recall": {
                        "without_mention": {"loss": 9.0, "accuracy": 0.0},
                        "100": {"loss": None, "accuracy": part},
                    },
                    "linear_probe": {"accuracy": 0.5 + part / 3},
                    "seconds": 2.0,
                    "time_share": 0.01,
                }
            )
    return found


def test_probes_are_drawn_and_their_time_is_said(tmp_path):
    records = with_probes(records_of_a_phase())
    folder = write_run(tmp_path / "phase1", records)
    (phase,) = read_chain([folder])
    assert [probe.tokens for probe in phase.probes] == [
        record["tokens"] for record in records if record["kind"] == "probes"
    ]
    assert phase.probes[-1].values["position.128-255.loss"] == 3.0
    assert "recall.100.loss" not in phase.probes[-1].values, "it was not finite"
    assert phase.probe_share == pytest.approx(8 / (8 + phase.seconds))
    page = page_of([folder], tmp_path)
    for title in ("Loss by position", "What context is worth", "Names recalled", "Linear probe"):
        assert f"{title}</h3>" in page
    for label in ("128-255", "512 tokens", "all of it", "no mention"):
        assert f">{label}</text>" in page
    assert "time in probes" in page


def test_without_probes_nothing_is_said_of_them(chain, tmp_path):
    page = page_of(chain, tmp_path)
    assert "Names recalled" not in page and "time in probes" not in page
