import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tessera.cli.main import main
from tessera.config import ConfigError, defined_in, load, mistake, to_plain, to_yaml
from tessera.quantities import ByteSize, Duration

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Constant:
    name: Literal["constant"] = "constant"


@dataclass(frozen=True, kw_only=True)
class Warmup:
    name: Literal["warmup"] = "warmup"
    over: Duration = Duration(10, "tok")


@dataclass(frozen=True, kw_only=True)
class Packing:
    row_tokens: int = 8192
    open_rows: int = 64
    fill: float = 0.99

    def __post_init__(self) -> None:
        problems = []
        if self.row_tokens < 1:
            problems.append(f"row_tokens must be positive; got {self.row_tokens}")
        if self.open_rows < 1:
            problems.append(f"open_rows must be positive; got {self.open_rows}")
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class Start:
    checkpoint: str
    optimizer: bool = True

    @classmethod
    def parse(cls, text: object) -> "Start":
        return cls(checkpoint=str(text))


@dataclass(frozen=True, kw_only=True)
class Run:
    folder: str
    duration: Duration = Duration(1, "ba")
    packing: Packing = field(default_factory=Packing)
    schedule: Constant | Warmup = field(default_factory=Constant)
    sizes: tuple[int, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    cache: ByteSize | None = None
    precision: Literal["auto", "fp32"] = "auto"
    keep: int | Literal["all"] = "all"
    start_from: Start | None = None
    packed: bool = True

    def __post_init__(self) -> None:
        if self.duration.value < 1:
            raise ValueError("duration is empty")


def written(folder, text, name="run.yaml"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def message(folder, text, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(Run, written(folder, text), overrides)
    return str(caught.value)


def test_values_units_and_sections_arrive_typed(tmp_path):
    run = load(
        Run,
        written(
            tmp_path,
            """
            folder: runs/a
            duration: 1.719e12tok
            packing: {row_tokens: 1e4, fill: 1}
            schedule: {name: warmup, over: 3_000tok}
            sizes: [1, 2]
            shares: {web: 0.5}
            cache: 1.5gb
            keep: 3
            start_from: runs/0/latest
            """,
        ),
        ["packing.open_rows=7"],
    )
    assert run.duration == Duration(1_719_000_000_000, "tok")
    assert run.packing == Packing(row_tokens=10_000, open_rows=7, fill=1.0)
    assert isinstance(run.packing.row_tokens, int) and isinstance(run.packing.fill, float)
    assert run.schedule == Warmup(over=Duration(3000, "tok"))
    assert run.sizes == (1, 2)
    assert run.cache == ByteSize(1_500_000_000)
    assert run.start_from == Start(checkpoint="runs/0/latest")


def test_what_was_resolved_reads_back_the_same(tmp_path):
    text = "folder: a\nschedule: {name: warmup}\ncache: 3gb\nstart_from: {checkpoint: x}\nkeep: 2"
    run = load(Run, written(tmp_path, text))
    assert load(Run, written(tmp_path, to_yaml(run), "again.yaml")) == run
    assert to_plain(run)["schedule"] == {"name": "warmup", "over": "10tok"}


def test_every_mistake_is_reported_at_once_by_key_with_what_was_meant(tmp_path):
    said = message(
        tmp_path,
        """
        foldr: a
        duration: 3000
        packing: {row_token: 5, open_rows: many, fill: .nan}
        schedule: {name: warmpu}
        open_rows: 3
        precision: fp23
        sizes: 4
        packed: 1
        """,
    ).splitlines()
    assert said[0].endswith("run.yaml: 11 problems")
    expected = {
        "foldr": "did you mean 'folder'?",
        "folder": "missing, and required",
        "duration": "tok (tokens), ba (batches) or sp (documents)",
        "packing.row_token": "did you mean 'row_tokens'?",
        "packing.open_rows": "expected a whole number, got 'many'",
        "packing.fill": "expected a finite number",
        "schedule.name": "did you mean 'warmup'?",
        "open_rows": "did you mean 'packing.open_rows'?",
        "precision": "did you mean 'fp32'?",
        "sizes": "expected a list, got 4",
        "packed": "expected true or false, got 1",
    }
    lines = {line.split(": ")[0].strip(): line for line in said[1:]}
    for key, text in expected.items():
        assert text in lines[key]


@dataclass(frozen=True, kw_only=True)
class Sources:
    named: dict[str, Packing] = field(default_factory=dict)


def test_null_takes_away_what_extends_brought(tmp_path):
    written(tmp_path, "named: {a: {row_tokens: 1}, b: {row_tokens: 2}}", "base.yaml")
    own = written(tmp_path, "extends: base.yaml\nnamed: {a: null, c: {row_tokens: 3}}")
    assert list(load(Sources, own).named) == ["b", "c"]


def test_checks_inside_and_around_a_wrong_section_are_reported_together(tmp_path):
    said = message(tmp_path, "folder: a\nduration: 0tok\npacking: {row_tokens: 0, open_rows: 0}")
    assert "packing.row_tokens: must be positive; got 0" in said
    assert "packing.open_rows: must be positive; got 0" in said
    assert "duration: is empty" in said


def test_extends_pulls_in_files_at_any_level_and_own_keys_win(tmp_path):
    written(tmp_path, "row_tokens: 1\nopen_rows: 2", "parts/packing.yaml")
    written(tmp_path, "folder: base\npacked: false\nschedule: {name: warmup}", "parts/base.yaml")
    run = load(
        Run,
        written(
            tmp_path,
            "extends: parts/base.yaml\nfolder: own\n"
            "packing: {extends: parts/packing.yaml, open_rows: 9}\nschedule: {name: constant}",
        ),
    )
    assert (run.folder, run.packed) == ("own", False)
    assert run.packing == Packing(row_tokens=1, open_rows=9)
    assert run.schedule == Constant()


def test_a_key_is_traced_to_the_file_it_stands_in(tmp_path):
    packing = written(tmp_path, "row_tokens: 1\nopen_rows: 2", "parts/packing.yaml")
    base = written(tmp_path, "folder: base\npacking: {extends: packing.yaml}", "parts/base.yaml")
    own = written(tmp_path, "extends: parts/base.yaml\npacking: {open_rows: 9}")
    for key, file in (
        ("packing.row_tokens", packing),
        ("packing.open_rows", own),
        ("folder", base),
        ("folder.inside", None),
        ("packed", None),
    ):
        assert defined_in(own, key) == file


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("extends: run.yaml", [], "extends itself"),
        ("extends: rnu.yaml", [], "rnu.yaml: no such file"),
        ("extends: deep/a.yaml", [], "nor a folder"),
        ("folder: [", [], "not valid YAML"),
        ("folder: a\nfolder: b", [], "not valid YAML"),
        ("- a", [], "expected keys with values"),
        ("folder: ${nothing}", [], "nothing"),
        ("folder: a", ["packed"], "key.sub_key=value"),
        ("folder: a", ["pack.open_rows=1"], "did you mean 'packing'?"),
        ("folder: a", ["packing=3"], "expected a section"),
    ],
)
def test_each_way_to_go_wrong_gets_one_clear_message(tmp_path, text, overrides, says):
    assert says in message(tmp_path, text, *overrides)


@pytest.mark.parametrize("text", ["3tok", "3 tok", "3e0tok", "3.0tok", "0_3tok"])
def test_durations_are_read_in_every_spelling(text):
    assert Duration.parse(text) == Duration(3, "tok")


@pytest.mark.parametrize("text", ["3", "tok", "3.5tok", "3ep", "-3tok", "3tokens", ""])
def test_durations_without_a_known_unit_or_a_whole_number_are_refused(text):
    with pytest.raises(ValueError, match="tok|whole number"):
        Duration.parse(text)


def test_an_override_by_another_name_replaces_the_section(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("folder: x\nschedule: {name: warmup, over: 5tok}\n")
    assert load(Run, path, ["schedule={name: constant}"]).schedule == Constant()
    assert load(Run, path, ["schedule.over=6tok"]).schedule.over.value == 6


def test_a_key_is_not_suggested_for_itself(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("folder: x\nschedule: {name: constant, over: 5tok}\n")
    with pytest.raises(ConfigError, match=r"unknown 'over'; the keys here are name$"):
        load(Run, path)


def test_what_extends_a_missing_file_is_named(tmp_path):
    (tmp_path / "run.yaml").write_text("extends: gone.yaml\n")
    with pytest.raises(ConfigError) as error:
        load(Run, tmp_path / "run.yaml")
    said = str(error.value)
    assert "run.yaml: extends " in said and "gone.yaml: no such file" in said
    assert "did you mean" not in said, "the file that asks is not what was meant"


def test_a_folder_is_no_yaml(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; name a YAML file in it"):
        load(Run, tmp_path)


def test_only_what_this_project_raises_speaks_to_users():
    def raised(work):
        try:
            work()
        except ValueError as error:
            return error

    assert mistake(raised(lambda: Duration.parse("three"))).startswith("expected a number")
    from tessera.data.pipeline.state import LaneState

    torn = {"rows": 0, "cursors": [], "drawn": [], "waiting": [1, 2]}
    inside_c = raised(lambda: LaneState.from_json(torn))
    assert "zip()" in str(inside_c) and mistake(inside_c) is None


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("learning_rate", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("micro_batch_size", "batch.microbatch_rows"),
        ("batch.micro_batch_size", "batch.microbatch_rows"),
        ("max_steps", "duration, such as 10000ba"),
    ],
)
def test_what_other_programs_call_a_key_is_told_by_its_name_here(key, says):
    from tessera.training.config import RunConfig

    with pytest.raises(ConfigError) as refused:
        load(RunConfig, REPOSITORY / "yamls" / "phase1.yaml", [f"{key}=1"])
    assert f"{key}: unknown '{key.rpartition('.')[2]}'; here it is {says}" in str(refused.value)


def test_what_other_names_point_to_exists():
    from tessera.schema import _keys
    from tessera.training.config import RunConfig

    keys = set(_keys(RunConfig, ""))
    first = {text.split(",")[0].split(":")[0].split(" ")[0] for text in RunConfig.KNOWN_AS.values()}
    assert first - {"nothing"} <= keys
    assert not set(RunConfig.KNOWN_AS) & {key for key in keys if "." not in key}


MISTAKES = """
run_folder: runs/x
duration: 1_000_000
seeed: 17
tokenizer: {folder}/tokenizer
learning_rate: 1e-3
per_device_train_batch_size: 8
max_steps: 100
num_train_epochs: 3
gradient_accumulation_steps: 2
warmup_ratio: 0.1
lr_scheduler_type: cosine
model:
  vocab_size: -5
  hiden_size: 192
  layers: 4
  heads: 6
  dim: 192
  intermediate_size: big
  num_hidden_layers: 0
  local_attention: 3.5
train_data:
  sources:
    web: {{local: {folder}/web, wieght: 0.4}}
    code: {{weight: 0.4}}
    old: null
  max_seq_len: 128
  row_tokens: -1
  lanes: eight
  masking: {{rate: 1.5}}
batch:
  rows: 0
  warmup: {{initial_rows: 2, over: 600000}}
optimizer: {{name: adam, lrr: 1, weight_decay: -1, betas: [0.9]}}
schedule: {{name: sawtooth, warmupp: 3tok}}
evaluation: {{interval: 3, max_tokens: -3}}
checkpoints: {{intervall: 1tok, keep: 0}}
compute: {{precision: fp16x, attention: flashy}}
loggers: {{wandb: {{projekt: a}}}}
watchdog_minutes: -3
"""
TOLD = (
    "seeed: .* 'seed'",
    "duration: .*with a unit",
    "tokenizer: .*no such folder",
    "learning_rate: .*optimizer.lr",
    "per_device_train_batch_size: .*batch.microbatch_rows",
    "max_steps: .*duration",
    "num_train_epochs: .*duration",
    "gradient_accumulation_steps: .*batch.rows",
    "warmup_ratio: .*schedule.warmup",
    "lr_scheduler_type: .*schedule.name",
    "model.vocab_size: .*got -5",
    "model.hiden_size: .*'hidden_size'",
    "model.layers: .*num_hidden_layers",
    "model.heads: .*num_attention_heads",
    "model.dim: .*hidden_size",
    "model.intermediate_size: .*'big'",
    "model.num_hidden_layers: .*got 0",
    "model.local_attention: .*3.5",
    "train_data.sources.web.wieght: .*'weight'",
    "train_data.sources.web: .*does not exist",
    "train_data.sources.code.local: missing",
    "train_data.sources.old: is not there .*web, code",
    "train_data.row_tokens: .*got -1",
    "train_data.lanes: .*'eight'",
    "train_data.masking.rate: .*1.5",
    "batch.rows: .*got 0",
    "batch.warmup.increment_rows: missing",
    "batch.warmup.over: .*with a unit",
    "optimizer.name: .*'adamw'",
    "optimizer.lrr: .*'lr'",
    "optimizer.betas: .*2 values",
    "optimizer.weight_decay: .*got -1",
    "schedule.name: .*sawtooth.*warmup_stable_decay",
    "schedule.warmupp: .*'warmup'",
    "evaluation.interval: .*with a unit",
    "evaluation.max_tokens: .*got -3",
    "checkpoints.intervall: .*'interval'",
    "checkpoints.keep: .*got 0",
    "compute.precision: .*fp16x",
    "compute.attention: .*flashy",
    "loggers: .*logging",
    "watchdog_minutes: .*got -3",
)


MORE_MISTAKES = """
run_folder: ""
run_name: 7
seed: -1
duration: 0tok
tokenizer: {folder}/tokenizer
optimizer.lr: 1e-3
weight_decay: 0.1
warmup: 3tok
dataset: web
save_strategy: steps
z_loss: -1
model: {{name: modernbert, rope_theta: 10, vocab_size: "50368", num_attention_heads: 7}}
train_data:
  sources:
    web: just/a/path
    far: {{remote: "s3://a/b", local: {folder}/far, cache_limit: 10}}
    old: {{local: {folder}/old, format: mdss, weight: many}}
  prefetch_rows: 0
  skip_rows: [x-y]
batch: {{rows: 10, microbatch_rows: 0, warmup: {{initial_rows: 4, increment_rows: 0, over: 5ba}}}}
optimizer: {{lr: fast, momentum: 2, wd: 1}}
schedule: {{name: warmup_stable_decay, decay: -3tok, floor: 2, drop_to: 0}}
start_from: {folder}/run
initial_weights: {{tile: {folder}/model}}
evaluation:
  interval: -5ba
  sources: {{own: {{local: {folder}/own}}, none: null}}
  probes: {{short: 1, linear_probe: {{train: {folder}/a.csv, test: {folder}/b.csv, limt: 3}}}}
checkpoints: {{milestones: 5, keep: none}}
compute: {{activation_checkpointing: x, threads: 0, trace: {{step: 3}}}}
logging: {{console_seconds: -3, wandb: true}}
spikes: false
"""
MORE_TOLD = (
    "run_folder: expected a path",
    "run_name: expected text, got 7",
    "seed: must be from 0 .*got -1",
    "duration: must be positive",
    "tokenizer: .*no such folder",
    r"optimizer.lr: .*it is a key of a section, optimizer: {lr: ...}",
    "weight_decay: .*'optimizer.weight_decay'",
    "warmup: .*'batch.warmup' or 'schedule.warmup'",
    "dataset: .*train_data.sources",
    "save_strategy: .*checkpoints.interval",
    "z_loss: must not be negative",
    "model.name: .*the keys here are vocab_size",
    "model.rope_theta: .*global_rope_theta",
    "model.vocab_size: .*'50368'",
    "model.hidden_size: .*7 attention heads",
    r"train_data.sources.web: expected a section of keys \(local, .*'just/a/path'",
    "train_data.sources.far.cache_limit: .*'100gb'",
    "train_data.sources.old.weight: expected a number, got 'many'",
    "train_data.sources.old.format: .*'mdss'",
    "train_data.prefetch_rows: must be at least 1",
    "train_data.skip_rows: .*'x-y'",
    "batch.microbatch_rows: must be at least 1",
    "batch.warmup.increment_rows: must be at least 1",
    "batch.warmup.over: is counted in tokens",
    "optimizer.name: missing; one of stable_adamw",
    "optimizer.lr: expected a number, got 'fast'",
    "optimizer.wd: unknown 'wd'",
    "schedule.decay: must not be negative; got '-3tok'",
    "schedule.floor: is a fraction",
    "schedule.drop_to: is a fraction",
    "start_from: .*run' does not exist",
    "start_from: .*initial_weights both say",
    "initial_weights.tile: .*model' does not exist",
    "evaluation.interval: must not be negative; got '-5ba'",
    "evaluation.sources.own: .*does not exist",
    "evaluation.sources.none: is not there .*there are own",
    "evaluation.probes.short: must be at least 8",
    "evaluation.probes.linear_probe.train: .*a.csv",
    "evaluation.probes.linear_probe.test: .*b.csv",
    "evaluation.probes.linear_probe.limt: .*'limit'",
    "checkpoints.milestones: expected a list, got 5",
    "checkpoints.keep: expected a whole number or 'all'",
    "compute.activation_checkpointing: expected true or false or a list, got 'x'",
    "compute.threads: must be at least 1",
    "compute.trace.step: .*'steps'",
    "logging.console_seconds: must not be negative",
    r"logging.wandb: expected a section of keys \(project",
    r"spikes: expected a section of keys \(window_steps",
)


@pytest.mark.parametrize(("mistakes", "told"), [(MISTAKES, TOLD), (MORE_MISTAKES, MORE_TOLD)])
def test_a_yaml_of_forty_mistakes_is_told_all_of_them_at_once(tmp_path, capsys, mistakes, told):
    (tmp_path / "mine.yaml").write_text(mistakes.format(folder=tmp_path))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    for expected in told:
        assert any(re.match(rf"  {expected}", line) for line in lines), expected
    assert len(lines) == len(told), "\n".join(lines)
    assert first.endswith(f"{len(told)} problems")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimizer: adamw", "optimizer: expected a section with a name, such as {name: adamw}"),
        ("train_data: {sources: {null: {local: a}}}", "a key of train_data.sources is no text"),
        ("compute: {activation_checkpointing: [3, 99]}", "names layers [99]; the model's 22 are"),
    ],
)
def test_a_mistake_of_form_is_told_by_where_it_is(tmp_path, capsys, text, says):
    base = REPOSITORY / "yamls" / "phase1.yaml"
    (tmp_path / "mine.yaml").write_text(f"extends: {base}\n{text}")
    assert main(["check", str(tmp_path / "mine.yaml")]) == 2
    assert says in capsys.readouterr().err


def test_a_source_that_is_not_there_cannot_be_taken_away(tmp_path):
    from tessera.training.config import RunConfig

    path = REPOSITORY / "yamls" / "phase1.yaml"
    with pytest.raises(ConfigError, match=r"train_data.sources.webb: is not there .* web, code"):
        load(RunConfig, path, ["train_data.sources.webb=null"])
    left = load(RunConfig, path, ["train_data.sources.web=null"]).train_data.sources
    assert sorted(left) == ["code", "science"]


def test_a_null_that_takes_nothing_away_is_told_in_the_file_it_stands_in(tmp_path):
    from tessera.training.config import RunConfig

    phase = f"extends: {REPOSITORY / 'yamls' / 'phase1.yaml'}\n"
    written(tmp_path, phase + "train_data: {sources: {webb: null, web: null}}", "base.yaml")
    written(tmp_path, "sources: {cod: null, code: null}", "data.yaml")
    own = written(tmp_path, "extends: base.yaml\ntrain_data: {extends: data.yaml}")
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, own)
    told = str(refused.value)
    assert f"train_data.sources.webb: null in {tmp_path}/base.yaml takes nothing away" in told
    assert f"train_data.sources.cod: null in {tmp_path}/data.yaml takes nothing away" in told
    assert "2 problems" in told, "web and code are there, and taken away"


@pytest.mark.parametrize("address", ["https://user:pw@api.wandb.ai", "team/project", "a:b"])
@pytest.mark.parametrize("key", ["project", "entity", "group"])
def test_wandb_is_given_names_and_no_address(key, address):
    from tessera.training.config import RunConfig

    path = REPOSITORY / "yamls" / "phase1.yaml"
    with pytest.raises(ConfigError, match=rf"logging.wandb.{key}: is a name, not an address"):
        load(RunConfig, path, [f"logging.wandb.{key}='{address}'"])
