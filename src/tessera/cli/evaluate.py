"""`tessera evaluate`: suites of tasks; loss per source beside the unigram entropy; masks filled."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli.arguments import (
    add_judging,
    existing,
    judge_models,
    load_run_config,
)
from tessera.config import ConfigError

if TYPE_CHECKING:
    from tessera.training.config import RunConfig

HELP = "What models are good for: suites of tasks; masked-LM loss per source; masks filled."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint, run or HF folder")
    parser.add_argument(
        "--config",
        nargs="+",
        metavar=("YAML", "key=value"),
        help="whose data to evaluate on, with overrides",
    )
    parser.add_argument(
        "--fill", action="append", default=[], metavar="TEXT", help="text with [MASK]"
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        metavar=("NAME|YAML", "key=value"),
        help="tasks to judge MODEL... by, with overrides; a model may be NAME=PATH, a hub id that "
        "is in the cache, or random:PATH for the same shape with random weights",
    )
    add_judging(parser)


def run(options: argparse.Namespace) -> None:
    """Print a table per model, then each text with its likeliest completions.

    Masks are filled first, which takes seconds: a text without a mask is not to be found out an
    hour later.
    """
    if options.suite is not None:
        _judge(options)
        return
    if options.config is None and not options.fill:
        raise ConfigError(
            "nothing to do: give --suite NAME for tasks, --config YAML for losses, --fill TEXT for "
            "masks"
        )
    config = load_run_config(options.config[0], options.config[1:]) if options.config else None
    models = {model: existing(model) for model in options.models}
    filled = [line for model in models.items() for line in _fills(*model, options.fill)]
    if config is not None:
        for line in _losses(models, config):
            print(line, flush=True)
    for line in filled:
        print(line, flush=True)


def _judge(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from tessera.evaluation.suites import load_suite
    from tessera.evaluation.tasks.config import MaskedLm, Recall

    if options.fill:
        raise ConfigError("--suite and --fill are two questions: ask them one at a time")
    suite = load_suite(options.suite[0], options.suite[1:], looks=True)
    if options.config is not None:
        config = load_run_config(options.config[0], options.config[1:])
        tasks = {
            name: replace(
                task,
                data=task.data or config.train_data,
                tokenizer=task.tokenizer or config.tokenizer,
            )
            if isinstance(task, MaskedLm | Recall) and task.texts is None
            else task
            for name, task in suite.tasks.items()
        }
        suite = replace(suite, tasks=tasks)
    judge_models(options, suite, options.models)


def _losses(models: Mapping[str, Path], config: "RunConfig") -> Iterator[str]:
    from tessera.checkpoints import load_model
    from tessera.data.validation import validation_batches
    from tessera.evaluation.masked_lm import score
    from tessera.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer)
    rate = config.evaluation.masking_rate
    yield f"masked-LM loss in nats on the validation documents, {rate:.0%} masked"
    yield f"{'model':<40} {'source':<10} {'loss':>7} {'right':>6} {'unigram entropy':>16}"
    for path, found in models.items():
        model = load_model(found)
        for name, source in config.train_data.sources.items():
            if source.validation_split is None:
                continue
            batches = validation_batches(
                config.train_data,
                name,
                tokenizer,
                vocab_size=config.model.vocab_size,
                masking_rate=rate,
                max_tokens=config.evaluation.max_tokens,
                seed=config.seed,
                rank=0,
                world_size=1,
            )
            scored = score(model, batches, tokenizer.special_ids.tolist())
            yield (
                f"{path:<40} {name:<10} {scored.loss:>7.3f} {scored.accuracy:>6.1%} "
                f"{scored.unigram_entropy:>16.3f}"
            )


def _fills(name: str, model: Path, texts: Sequence[str]) -> Iterator[str]:
    if not texts:
        return
    from tessera.evaluation.fill_mask import fill_masks

    answers = fill_masks(model, texts)
    yield f"\n{name} fills"
    for filled in answers:
        guesses = ", ".join(f"{token!r} {share:.0%}" for token, share in filled.guesses)
        yield f"  {filled.text}\n    {guesses}"
