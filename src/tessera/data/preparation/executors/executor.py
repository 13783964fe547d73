"""Where tasks run: processes of this machine, a Slurm cluster, or a Ray cluster.

The result never depends on it: a task writes one part, whole or not at all, and what is finished is
read from the parts. Tasks are grouped into `tasks` jobs for a cluster, and watched: one that is
lost is run again once, and then named. Slurm's jobs are submitted by datatrove's executor. Its
local and Ray executors are not used: a process that is killed there is lost without a word, and the
driver waits for ever.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tessera.data.preparation.executors.local import (
    Work,
    WorkerFailed,
    in_processes,
    lost,
    one_by_one,
)
from tessera.paths import LocalPath, is_remote

log = logging.getLogger(__name__)

_CLUSTER_TASKS = 64


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """What runs the tasks."""

    name: Literal["local", "slurm", "ray"] = "local"
    tasks: int | None = None
    """Jobs that a cluster is given; each does its share of the parts. None: 64, or one a part."""
    workers: int | None = None
    """Processes here, or jobs at a time on a cluster. None: one a core here, no limit there."""
    logs: LocalPath | None = None
    """Folder for what jobs say, on a disk that all machines share. None: `logs` in a local `out`,
    else `runs/preparation`."""
    partition: str = "cpu"
    """Of Slurm."""
    time: str = "24:00:00"
    """Slurm's limit for a job."""
    memory_gb: int = 4
    """Of a job."""
    qos: str = ""
    environment: str = ""
    """What a Slurm job runs first, such as `source /shared/venv/bin/activate`."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, by their long names."""
    poll_seconds: float = 10.0
    """How often a cluster is asked what became of the jobs."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: must be at least 1; got {value}"
            for name, value in (("tasks", self.tasks), ("workers", self.workers))
            if value is not None and value < 1
        ]
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def processes(self) -> int:
        """How many processes of this machine to use."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tasks, and the name of what they make together."""

    items: Sequence[Any]
    work: Work
    finished: Callable[[], set[int]]
    """Looks which of the items are done, by their place in `items`."""
    logs: Path
    """Where jobs leave what they have to say: named by the plan's fingerprint."""
    weights: Sequence[int]
    """About how much work each item is, in bytes of its input."""
    preload: tuple[str, ...] = ()
    """Modules that processes of this machine should have from the start."""
    is_isolated: bool = False
    """Whether even one process at a time is another one than this, which then outlives it."""


_BYTES_FOR_A_PROCESS = 1 << 21


def run(plan: Plan, config: ExecutorConfig) -> Iterator[int]:
    """Do what is not done; yields the weight of each item that is finished.

    Raises:
        ValueError: what an item raised, for the user to mend. Finished items stay finished.
        TasksLost: items whose process or job was lost twice.
    """
    done = plan.finished()
    yield from (plan.weights[index] for index in done)
    left = [index for index in range(len(plan.items)) if index not in done]
    if not left:
        return
    if config.name == "local":
        items = [plan.items[index] for index in left]
        weights = [plan.weights[index] for index in left]
        # A process costs about as much to start as this many bytes to tokenise.
        enough = 1 + sum(weights) // _BYTES_FOR_A_PROCESS
        workers = min(config.processes, len(items), enough)
        if workers == 1 and not plan.is_isolated:
            done_now = one_by_one(items, plan.work)
        else:
            done_now = in_processes(items, plan.work, workers, plan.preload)
        yield from (weights[index] for index in done_now)
        return
    start = _Slurm if config.name == "slurm" else _Ray
    yield from _on_cluster(plan, left, config, start(config, plan.logs))


def _on_cluster(
    plan: Plan, left: list[int], config: ExecutorConfig, cluster: "_Slurm | _Ray"
) -> Iterator[int]:
    """Submit, watch, submit again what was lost, and name what was lost twice."""
    plan.logs.mkdir(parents=True, exist_ok=True)
    missing = set(left)
    for _ in range(2):
        groups = _grouped(sorted(missing), config.tasks or _CLUSTER_TASKS)
        cluster.submit([[plan.items[index] for index in group] for group in groups], plan.work)
        running = True
        while running and missing:
            running = cluster.still_running()  # asked first: what ends in between is seen as done
            done = plan.finished() & missing
            yield from (plan.weights[index] for index in sorted(done))
            missing -= done
        if problem := cluster.problem():
            raise ValueError(problem)
        if not missing:
            return
        log.warning("%d tasks were lost; running them again", len(missing))
    raise lost([plan.items[index] for index in sorted(missing)], f"see {plan.logs}")


def _grouped(indices: list[int], groups: int) -> list[list[int]]:
    """Shares of about equal number; neighbours apart, so that big files are spread."""
    return [indices[start::groups] for start in range(min(groups, len(indices)))]


# ---- Slurm


class _Slurm:
    """Job arrays, submitted by datatrove; a second call waits for what the first submitted."""

    def __init__(self, config: ExecutorConfig, logs: Path) -> None:
        try:
            import datatrove  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "--executor slurm needs datatrove: pip install 'tessera[data]'"
            ) from error
        if shutil.which("sbatch") is None:
            raise ValueError("--executor slurm: there is no sbatch here; run it on a login node")
        self._config, self._logs = config, logs
        self._errors = logs / "errors"
        self._record = logs / "submitted.json"
        self._job = ""

    def submit(self, groups: list[list[Any]], work: Work) -> None:
        earlier = json.loads(self._record.read_text()) if self._record.is_file() else None
        if earlier is not None and self._in_queue(earlier):
            log.warning("waiting for job %s, which an earlier call submitted", earlier)
            self._job = earlier
            return
        from datatrove.executor.slurm import SlurmPipelineExecutor

        from tessera.data.preparation.executors.datatrove_step import DoShare

        shutil.rmtree(self._errors, ignore_errors=True)
        self._errors.mkdir(parents=True)
        config = self._config
        executor = SlurmPipelineExecutor(
            pipeline=[DoShare(groups, work, str(self._errors))],
            tasks=len(groups),
            time=config.time,
            partition=config.partition,
            mem_per_cpu_gb=config.memory_gb,
            workers=config.workers or -1,
            job_name="tessera",
            qos=config.qos,
            env_command=config.environment or None,
            sbatch_args=dict(config.sbatch),
            logging_dir=str(self._logs.resolve()),
            skip_completed=False,  # its markers know the number of a job, not what it was about
            requeue=False,  # a lost job is submitted again from here
        )
        try:
            executor.run()
        except subprocess.CalledProcessError as error:
            raise ValueError(f"sbatch refused the jobs (status {error.returncode})") from error
        self._job = str(executor.job_id)
        self._record.write_text(json.dumps(self._job))

    def still_running(self) -> bool:
        time.sleep(self._config.poll_seconds)
        if self._errors.is_dir() and any(self._errors.iterdir()):
            return False
        return self._in_queue(self._job)

    def problem(self) -> str | None:
        self._record.unlink(missing_ok=True)
        found = sorted(self._errors.iterdir()) if self._errors.is_dir() else []
        if not found:
            return None
        with contextlib.suppress(OSError):
            subprocess.run(["scancel", self._job], capture_output=True)
        return found[0].read_text()

    def _in_queue(self, job: str) -> bool:
        command = ["squeue", "--noheader", f"--jobs={job}"]
        asked = subprocess.run(command, capture_output=True, text=True)
        return asked.returncode == 0 and bool(asked.stdout.strip())


# ---- Ray


class _Ray:
    """Tasks of a Ray cluster: the one that RAY_ADDRESS names, or one on this machine."""

    def __init__(self, config: ExecutorConfig, logs: Path) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("--executor ray needs ray: pip install 'tessera[ray]'") from error
        self._config, self._ray = config, ray
        self._running: dict[Any, None] = {}
        self._waiting: list[tuple[Any, Any]] = []
        self._problem: str | None = None
        if not ray.is_initialized():
            self._connect()

    def _connect(self) -> None:
        options: dict[str, Any] = {}
        if not os.environ.get("RAY_ADDRESS"):
            # One on this machine, for this command alone: nothing to look at, little to keep.
            options = {"num_cpus": self._config.processes, "include_dashboard": False}
            options["object_store_memory"] = 1 << 27
            os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray raises no narrower one
            raise ValueError(f"--executor ray: the cluster cannot be reached: {error}") from error

    def submit(self, groups: list[list[Any]], work: Work) -> None:
        self._waiting = [(group, work) for group in groups]
        self._start()

    def _start(self) -> None:
        # Ray would run a killed task again by itself, three times and in silence.
        remote = self._ray.remote(max_retries=0, num_cpus=1)(_do_share)
        limit = self._config.workers or len(self._waiting)
        while self._waiting and len(self._running) < limit:
            self._running[remote.remote(*self._waiting.pop(0))] = None

    def still_running(self) -> bool:
        wait = functools.partial(self._ray.wait, num_returns=1, timeout=self._config.poll_seconds)
        ended, _ = wait(list(self._running)) if self._running else ([], [])
        for task in ended:
            del self._running[task]
            try:
                self._problem = self._problem or self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:
                raise WorkerFailed(str(error)) from error
            except self._ray.exceptions.RayError as error:  # a process or a machine is gone
                log.warning("%s", " ".join(str(error).split())[:300])
        if self._problem:
            return False
        self._start()
        return bool(self._running)

    def problem(self) -> str | None:
        return self._problem


def _do_share(share: list[Any], work: Work) -> str | None:
    """Do some items, in one core; returns what the user has to mend, if something."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        work.start()
        for item in share:
            work.do(item)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def shared_folder(out: str, named: str | None) -> Path:
    """Where what is not part of the result goes: where it is named, in a local `out`, or here."""
    return Path(named or ("runs/preparation" if is_remote(out) else out))


def log_folder(out: str, config: ExecutorConfig, fingerprint: str) -> Path:
    """Where jobs leave what they have to say; another plan has another one."""
    base = shared_folder(out, config.logs)
    return base / fingerprint if config.logs or is_remote(out) else base / "logs" / fingerprint


def fingerprint_of(plan: Any) -> str:
    """Names what is to be done, of plain values, in 16 letters."""
    return hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]
