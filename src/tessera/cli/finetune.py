"""`tessera finetune`: one model, one task of a suite, and the model that comes of it."""

import argparse
from dataclasses import replace
from pathlib import Path

from tessera.cli.arguments import add_judging, judge_models, written
from tessera.config import ConfigError

HELP = "Fine-tune a model on one task: the grid, the seeds, and the best model kept."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint, run, HF folder or NAME=PATH")
    parser.add_argument(
        "--task",
        nargs="+",
        required=True,
        metavar=("SUITE/TASK", "key=value"),
        help="such as glue/cola, or mine.yaml/language, with overrides of the suite's keys",
    )
    add_judging(parser)


def run(options: argparse.Namespace) -> None:
    """Do the jobs of one task, and name the folder of the best model."""
    from tessera.evaluation.jobs.records import Records
    from tessera.evaluation.suites import load_suite, start_of
    from tessera.evaluation.tasks.config import is_seeded, main_metric

    name, slash, task_name = options.task[0].rpartition("/")
    if not slash or not name:
        raise ConfigError(
            f"--task {options.task[0]}: is written SUITE/TASK, such as glue/cola or "
            "mine.yaml/language"
        )
    suite = load_suite(name, options.task[1:])
    task = suite.tasks.get(task_name)
    if task is None:
        raise ConfigError(
            f"--task {options.task[0]}: {name} has no task '{task_name}'; it has "
            f"{', '.join(suite.tasks)}"
        )
    if not is_seeded(task):
        raise ConfigError(
            f"--task {options.task[0]}: nothing is trained for it; ask tessera evaluate --suite"
        )
    wanted = {start_of(task), task_name}
    suite = replace(suite, tasks={n: t for n, t in suite.tasks.items() if n in wanted})
    cells = judge_models(options, suite, [options.model], keep=True)
    cell = next(cell for cell in cells if cell.task_name == task_name)
    best = cell.best(cell.jobs)
    assert best is not None, "a task without a failure has a best job"
    records = Records(out=Path(written("--out", options.out)))
    metric = main_metric(task)
    scores = [cell.finished[job.id]["scores"][metric] for job in cell.reported]
    print(f"{metric:<8} {' '.join(f'{score:.4f}' for score in scores)} (a seed each)")
    print(f"model    {records.trained(best)}")
