"""The files of yamls/cluster, with stand-ins for the schedulers' own commands."""

import os
import signal
import subprocess
import time

import pytest
import tiny_run
import yaml

CLUSTER = tiny_run.REPOSITORY / "yamls" / "cluster"
STANDINS = {
    "scontrol": '[ "$1" = show ] && echo node7 || echo "$@" >> "$LOG"',
    "srun": 'shift; SLURM_NODEID=0 exec "$@"',
    # A training: it ends with 75 once it is asked to, else with the status it was given.
    "composer": (
        'echo "composer $*" >> "$LOG"\n'
        '[ -n "$STATUS" ] && exit "$STATUS"\n'
        'until [ -e "$RUN/stop" ]; do sleep 0.05; done; exit 75'
    ),
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the script as Slurm would; what was called is in `log`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STANDINS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "log").touch()

    def start(status=""):
        return subprocess.Popen(
            ["bash", str(CLUSTER / "phase.sbatch")],
            env={
                **os.environ,
                "PATH": f"{folder}:{os.environ['PATH']}",
                "LOG": str(tmp_path / "log"),
                "STATUS": status,
                "YAML": "phase.yaml",
                "RUN": str(tmp_path / "run"),
                "SLURM_JOB_ID": "12",
                "SLURM_JOB_NODELIST": "node[7-8]",
                "SLURM_NNODES": "2",
            },
        )

    return start


def test_slurm_stops_a_run_before_its_limit_and_requeues_it(slurm, tmp_path):
    process = slurm()
    log = tmp_path / "log"
    while "composer" not in log.read_text():
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 75
    assert "requeue 12" in log.read_text()
    called = log.read_text().splitlines()[0]
    assert "-n 8 --world_size 16 --node_rank 0 --base_rank 0 --master_addr node7" in called
    assert f"main.py phase.yaml run_folder={tmp_path / 'run'}" in called


@pytest.mark.parametrize("status", ["0", "1", "2"])
def test_slurm_requeues_nothing_that_ended_otherwise(status, slurm, tmp_path):
    assert slurm(status).wait(timeout=30) == int(status)
    assert "requeue 12" not in (tmp_path / "log").read_text()


def test_kubernetes_starts_again_what_was_saved_and_not_what_is_wrong():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    rules = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules == {"FailJob": [2], "Ignore": [75]}
    command = pod["containers"][0]["args"][0]
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}" in command
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == spec["template"]["metadata"]["labels"]
    gpus = pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--world_size {gpus * spec['completions']}" in command


def test_skypilot_names_every_variable_that_it_uses():
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert {"YAML", "RUN"} <= set(task["envs"]) and "run_folder=$RUN" in task["run"]
    assert subprocess.run(["bash", "-n", "-c", task["run"]]).returncode == 0
