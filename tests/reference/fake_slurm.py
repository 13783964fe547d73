"""A stand-in for Slurm on PATH: sbatch, srun, squeue and scontrol that run jobs on this machine.

It honours what our scripts rely on (job arrays with their limit, output files, --export) and
nothing else: no queues, accounts, dependencies or limits of time and memory. A job of a real
cluster may fail in ways that this one cannot.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def install(folder):
    """Put the commands into a folder; returns the environment in which they are found."""
    state = Path(folder) / "state"
    state.mkdir(parents=True)
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        path = Path(folder) / name
        path.write_text(f'#!/bin/bash\nexec {sys.executable} {__file__} {name} "$@"\n')
        path.chmod(0o755)
    scripts = Path(sys.executable).parent  # launch_pickled_pipeline lies there
    path = f"{folder}{os.pathsep}{scripts}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "FAKE_SLURM": str(state)}


def sbatch(state, *arguments):
    script = Path(arguments[-1]).read_text()
    job = str(100 + len(list(state.iterdir())))
    (state / f"{job}.sh").write_text(script)
    (state / job).write_text("running")
    for argument in arguments[:-1]:
        if argument.startswith("--export=ALL,"):
            name, _, value = argument.removeprefix("--export=ALL,").partition("=")
            os.environ[name] = value
    command = [sys.executable, __file__, "job", job]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet)
    print(f"Submitted batch job {job}")


def job(state, number):
    script = state / f"{number}.sh"
    options = dict(re.findall(r"#SBATCH --([a-z-]+)=(.*)", script.read_text()))
    pattern = r"(\d+)-(\d+)(?:%(\d+))?"
    first, last, limit = re.fullmatch(pattern, options.get("array", "0-0")).groups()

    def run(rank):
        name = options.get("output", os.devnull).replace("%A", number).replace("%a", str(rank))
        names = {"SLURM_ARRAY_TASK_ID": str(rank), "SLURM_JOB_ID": number}
        environment = {**os.environ, **names, "SLURM_NODELIST": "localhost"}
        with open(name, "w") as log:
            subprocess.run(["bash", script], stdout=log, stderr=log, env=environment)

    with ThreadPoolExecutor(int(limit or 2)) as pool:
        list(pool.map(run, range(int(first), int(last) + 1)))
    (state / number).write_text("ended")


def srun(state, *arguments):
    rest = list(arguments)
    while rest[0].startswith("-"):
        rest = rest[2:] if rest[0] == "-n" else rest[1:]
    os.execvp(rest[0], rest)


def squeue(state, *arguments):
    asked = next(a for a in arguments if a.startswith("--jobs=")).removeprefix("--jobs=")
    for number in asked.split(","):
        if (state / number).read_text() == "running":
            print(f"{number} cpu tessera R")


def scontrol(state, *arguments):
    print("localhost")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), *sys.argv[2:])
