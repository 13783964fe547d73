"""Every YAML we ship loads, validates and builds, and holds the published recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tessera.config import load
from tessera.evaluation.suites import SuiteConfig, load_suite
from tessera.model.config import ModelConfig
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.planning.first_yaml import SIZES
from tessera.planning.memory import parameters
from tessera.training.config import RunConfig

YAMLS = Path(__file__).parent.parent / "yamls"
PHASES = sorted(
    p
    for p in YAMLS.rglob("*.yaml")
    if p.relative_to(YAMLS).parts[0] not in {"models", "data", "cluster", "evaluation"}
)
NAMES = [str(path.relative_to(YAMLS)) for path in PHASES]

# modernbert recipe: tokens, context, token slots of a batch, peak rate, weight decay, theta,
# seed, token slots of a microbatch
PUBLISHED = {
    "phase1.yaml": (1_719e9, 1024, 4_718_592, 8e-4, 1e-5, 10_000, 17, 98_304),
    "phase2.yaml": (250e9, 8192, 4_718_592, 3e-4, 1e-5, 160_000, 17, 98_304),
    "phase3.yaml": (50e9, 8192, 4_718_592, 3e-4, 1e-5, 160_000, 17, 98_304),
    "large/phase1.yaml": (1_719e9, 1024, 5_046_272, 5e-4, 1e-5, 10_000, 314, 57_344),
    "large/phase2.yaml": (250e9, 8192, 5_046_272, 5e-5, 1e-6, 160_000, 314, 57_344),
    "large/phase3.yaml": (50e9, 8192, 5_111_808, 5e-5, 1e-6, 160_000, 314, 49_152),
}


@pytest.mark.parametrize("path", PHASES, ids=NAMES)
def test_a_shipped_yaml_is_valid_short_and_builds_on_the_meta_device(path):
    config = load(RunConfig, path)
    with torch.device("meta"):
        model = ModernBertForMaskedLM(config.model)
    assert sum(p.numel() for p in model.parameters()) == parameters(config.model)
    assert len(path.read_text().splitlines()) <= 45


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_the_published_one(name):
    tokens, context, slots, lr, decay, theta, seed, micro = PUBLISHED[name]
    config = load(RunConfig, YAMLS / name)
    assert config.duration.value == tokens and config.duration.unit == "tok"
    assert config.train_data.max_seq_len == context
    assert config.batch.rows * config.train_data.row_tokens == slots
    assert config.batch.microbatch_rows * config.train_data.row_tokens == micro
    assert config.optimizer.name == "stable_adamw"
    assert config.optimizer.betas == (0.9, 0.98) and config.optimizer.eps == 1e-6
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (lr, decay)
    assert (config.model.global_rope_theta, config.model.local_rope_theta) == (theta, 10_000)
    assert config.seed == seed
    assert (config.train_data.masking.rate, config.evaluation.masking_rate) == (0.3, 0.15)
    assert not config.world_problems(8)
    expected = 395_881_664 if name.startswith("large") else 149_655_232
    assert parameters(config.model) == expected


def test_the_long_document_recipe_takes_each_folder_apart_by_length():
    sources = load(RunConfig, YAMLS / "prolong.yaml").train_data.sources
    long = {name: source for name, source in sources.items() if source.min_document_tokens}
    assert sum(source.weight for source in sources.values()) == pytest.approx(1)
    assert sum(source.weight for source in long.values()) == pytest.approx(0.6)
    for name, source in long.items():
        short = sources[name.removesuffix("_long")]
        assert short.local == source.local
        assert short.max_document_tokens + 1 == source.min_document_tokens


def test_batches_grow_as_published():
    base, large = (
        load(RunConfig, YAMLS / name).batch for name in ("phase1.yaml", "large/phase1.yaml")
    )
    assert (base.warmup.initial_rows, base.warmup.increment_rows) == (96, 96)
    assert base.warmup.over.value == 50e9
    assert (large.warmup.initial_rows, large.warmup.increment_rows) == (56, 56)
    assert large.warmup.over.value == 10e9


def test_the_rates_follow_the_published_schedules():
    phase1, phase3, large = (
        load(RunConfig, YAMLS / name)
        for name in ("phase1.yaml", "phase3.yaml", "large/phase1.yaml")
    )

    def rate(config, tokens):
        return config.optimizer.lr * config.schedule.multiplier(int(tokens), config.duration.value)

    assert rate(phase1, 1.5e9) == pytest.approx(4e-4)
    assert rate(phase1, 3e9) == rate(phase1, 1.7e12) == 8e-4
    for share, expected in [(0, 1), (0.01, 0.9001), (0.25, 0.5005), (0.81, 0.1009), (1, 0.001)]:
        assert rate(phase3, share * 50e9) == pytest.approx(3e-4 * expected, rel=1e-3)
    assert rate(large, 899e9) == 5e-4
    assert rate(large, 901e9) == pytest.approx(5e-5)


def test_phases_are_chained_from_the_one_before():
    for folder in ("", "large/", "demo/"):
        chain = [load(RunConfig, YAMLS / f"{folder}phase{n}.yaml") for n in (1, 2, 3)]
        assert chain[0].start_from is None
        seeds = [config.train_data.seed for config in chain]
        assert len(set(seeds)) == 3, "phases of one seed would read the same rows again"
        for before, after in zip(chain, chain[1:], strict=False):
            assert after.start_from.checkpoint.startswith(before.run_folder + "/")
            assert after.initial_weights is None


@pytest.mark.parametrize("path", sorted((YAMLS / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_model_file_stands_alone(path):
    assert load(ModelConfig, path).vocab_size % 64 == 0


@pytest.mark.parametrize(
    "path", sorted((YAMLS / "evaluation").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_suite_that_we_ship_is_valid(path):
    assert load_suite(path.stem) == load(SuiteConfig, path)


def test_glue_is_asked_as_published():
    tasks = load_suite("glue").tasks
    assert set(tasks) == {"mnli", "qqp", "qnli", "sst2", "cola", "mrpc", "rte", "stsb"}
    assert {name for name, task in tasks.items() if task.start == "mnli"} == {"mrpc", "rte", "stsb"}
    for task in tasks.values():
        training = task.training
        assert (training.batch, task.max_tokens) == (64, 256)
        assert training.lr == [1e-5, 3e-5, 5e-5, 8e-5]
        assert sorted(training.weight_decay) == [1e-6, 5e-6, 8e-6, 1e-5]
        assert (training.betas, training.eps, training.warmup) == ((0.9, 0.98), 1e-6, 0.1)
        assert max(training.epochs) <= 10
    metrics = {name: task.metrics[0] for name, task in tasks.items()}
    assert (metrics.pop("cola"), metrics.pop("stsb")) == ("matthews", "spearman")
    assert set(metrics.values()) == {"accuracy"}


@pytest.mark.parametrize(
    ("size", "phase"),
    [("tiny", "demo/recipe.yaml"), ("base", "phase1.yaml"), ("large", "large/phase1.yaml")],
)
def test_sizes_that_init_offers_are_those_of_the_yamls(size, phase):
    config = load(RunConfig, YAMLS / phase)
    offered = replace(SIZES[size].model, vocab_size=config.model.vocab_size)
    assert offered == replace(config.model, global_rope_theta=offered.global_rope_theta)
    assert (SIZES[size].lr, SIZES[size].row_tokens) == (
        config.optimizer.lr,
        config.train_data.row_tokens,
    )
