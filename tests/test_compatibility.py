"""What earlier versions wrote is read by this one: `old_run/` holds a run that one of them began.

`old_run/checkpoints` is what it left after its fifth step, `metrics.jsonl` what it recorded when it
went on to the end, `phase.yaml` its configuration and `corpus/` its data. Its data fingerprint
holds masking as one text, which today's do not.
"""

import json
import shutil
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

import pytest
import tiny_run
import yaml

from tessera.checkpoints import load_model
from tessera.config import decode, to_plain
from tessera.data.config import DataConfig, MaskingConfig
from tessera.data.pipeline.fingerprint import check_fingerprint
from tessera.data.pipeline.state import LoaderState
from tessera.training.config import RunConfig

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """The run as its machine lost power after the fifth step; returns its folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "corpus", "corpus")
    folder = Path("run")
    shutil.copytree(OLD / "checkpoints", folder / "checkpoints")
    lines = (OLD / "metrics.jsonl").read_text().splitlines(keepends=True)
    before = [line for line in lines if json.loads(line)["step"] <= 5]
    (folder / "metrics.jsonl").write_text("".join(before))
    return folder


def recorded(folder, kind="step"):
    return tiny_run.untimed(tiny_run.metrics(folder, kind))


def test_an_old_checkpoint_resumes_to_the_same_rows_masks_rates_and_losses(old_run):
    plain = yaml.safe_load((OLD / "phase.yaml").read_text())
    assert plain["train_data"]["masking"]["final_rate"] != plain["train_data"]["masking"]["rate"]
    assert tiny_run.train(plain) == 0
    steps, expected = recorded(old_run), recorded(OLD)
    assert len({step["rows"] for step in expected[5:]}) == 2, "the batch grows after the fifth step"
    rounded = ("loss", "grad_norm")  # to the last bit only on the kind of processor that wrote it
    for step, old in zip(steps, expected, strict=True):
        assert step.keys() - old.keys() <= {"epochs_read"}, "what came since"
        assert {k: step[k] for k in old if k not in rounded} == {
            k: v for k, v in old.items() if k not in rounded
        }
        assert [step[k] for k in rounded] == pytest.approx([old[k] for k in rounded], rel=1e-4)
    for evaluation, old in zip(
        recorded(old_run, "evaluation"), recorded(OLD, "evaluation"), strict=True
    ):
        for source, score in old["sources"].items():
            assert evaluation["sources"][source]["loss"] == pytest.approx(score["loss"], rel=1e-4)


def test_an_old_checkpoint_is_a_model_and_the_start_of_a_phase(old_run, tmp_path):
    assert load_model(old_run).config.hidden_size == 16
    plain = yaml.safe_load((OLD / "phase.yaml").read_text())
    after = {**plain, "run_folder": "next", "start_from": "run", "seed": 4}
    assert tiny_run.train(after) == 0


def test_a_changed_masking_is_still_noticed(old_run):
    plain = yaml.safe_load((OLD / "phase.yaml").read_text())
    plain["train_data"]["masking"]["final_rate"] = 0.25
    with pytest.raises(ValueError, match=r"train_data.masking.final_rate: was 0.2, now 0.25"):
        tiny_run.train(plain)
    plain["train_data"]["allow_changed"] = ["masking"]
    assert tiny_run.train(plain) == 0


def config():
    return decode(RunConfig, yaml.safe_load((OLD / "phase.yaml").read_text()), "test")


def places_of_defaults(section, path=()):
    """The path of every option that has a default, in every section of a configuration."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from places_of_defaults(value, (*path, field.name))
        if isinstance(value, dict):
            for name, item in value.items():
                yield from places_of_defaults(item, (*path, field.name, name))
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value == default and field.name != "name":
            yield (*path, field.name)


def test_an_option_that_is_newer_than_a_checkpoint_is_no_change_of_it(old_run):
    """Any option with a default could be the newer one: the checkpoint is made to lack it."""
    from tessera.training.resume import read, resumable

    now = config()
    saved = read(OLD / "checkpoints" / "step00000005.pt")
    places = list(places_of_defaults(now))
    assert ("model", "norm_eps") in places and ("train_data", "masking", "whole_words") in places
    assert ("train_data", "sources", "web", "split") in places and ("spikes",) in places
    for *path, last in places:
        plain = to_plain(now)
        section = plain
        for part in path:
            section = section[part]
        del section[last]
        assert resumable(now, replace(saved, run_config=plain)) == [], (path, last)


def fingerprint_of(masking=None, **changes):
    from tessera.data.pipeline.fingerprint import DEFAULTS

    data = DataConfig(sources=config().train_data.sources, masking=masking or MaskingConfig())
    data = replace(data, **changes)
    named = {f"masking.{f.name}": str(getattr(data.masking, f.name)) for f in fields(MaskingConfig)}
    plain = {key: str(getattr(data, key)) for key in DEFAULTS if not key.startswith("masking.")}
    return plain | named | {"seed": "1"}


def test_an_option_that_is_newer_than_a_fingerprint_had_its_default():
    now = fingerprint_of()
    for key in now.keys() - {"seed"}:
        older = {k: v for k, v in now.items() if k != key}
        check_fingerprint(older, now, ())
    words = {**now, "masking.whole_words": "True"}
    with pytest.raises(ValueError, match="masking.most_word_tokens: was any, now 8; masks differ"):
        check_fingerprint(words, {**words, "masking.most_word_tokens": "8"}, ())
    with pytest.raises(ValueError, match="train_data.masking.whole_words: was False, now True"):
        older = {k: v for k, v in now.items() if k != "masking.whole_words"}
        check_fingerprint(older, fingerprint_of(MaskingConfig(whole_words=True)), ())
    with pytest.raises(ValueError, match="train_data.masking.spans: was False, now True; masks di"):
        older = {k: v for k, v in now.items() if k != "masking.spans"}
        check_fingerprint(older, fingerprint_of(MaskingConfig(spans=True)), ())


def test_a_state_that_was_saved_with_masking_as_one_text_is_read():
    text = "MaskingConfig(rate=0.3, final_rate=0.1, over=Duration(value=70, unit='tok'), "
    text += "whole_words=True)"
    plain = {"fingerprint": {"masking": text}, "step": 0, "rows": 0, "sources": [], "lanes": {}}
    state = LoaderState.from_json(plain)
    assert state.fingerprint == {
        "masking.rate": "0.3",
        "masking.final_rate": "0.1",
        "masking.over": "70tok",
        "masking.whole_words": "True",
    }
