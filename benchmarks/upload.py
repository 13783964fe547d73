"""What a run folder in an object store costs the steps of a training.

    python benchmarks/upload.py [--server sink|moto] [--rounds 3] [--out results/upload.json]

The same run without checkpoints, saving them to the local disk, and saving them to an S3 server in
a process of its own on this machine; in turns, `--rounds` times. A checkpoint is due every
`--every` steps. The time of a step does not contain the time of saving; what uploading costs is how
much slower the steps are that are made meanwhile.

`sink` is a server that reads and forgets (`s3_sink.py`): what is seen is the uploading process.
`moto` stores and hashes in Python, on the same cores: what is seen is mostly that server.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import hardware

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))
import tiny_run  # noqa: E402  the corpus and the YAML of the tests

BUCKET = "benchmark"
MODEL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 64,
}


def main() -> int:
    """Run the three in turns, print a table, write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", choices=("sink", "moto"), default="sink")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=6, help="steps between checkpoints (6)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    every = options.every
    runs: dict[str, list[Run]] = {"no checkpoints": [], "local disk": [], "object store": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = tiny_run.make_corpus(folder / "corpus", documents=600)
        server, endpoint = start_server(options.server)
        os.environ.update(
            S3_ENDPOINT_URL=endpoint,
            AWS_ACCESS_KEY_ID="benchmark",
            AWS_SECRET_ACCESS_KEY="benchmark",
            AWS_DEFAULT_REGION="us-east-1",
            TESSERA_CACHE=str(folder / "cache"),
        )
        try:
            make_bucket(endpoint)
            for n in range(options.rounds):
                places = (folder / f"none{n}", folder / f"local{n}", f"s3://{BUCKET}/run{n}")
                for (variant, done), place in zip(runs.items(), places, strict=True):
                    due = None if variant == "no checkpoints" else every
                    done.append(measure(corpus, place, options.steps, due, server.pid))
        finally:
            server.kill()
            server.wait()
    found = {variant: summary(done) for variant, done in runs.items()}
    print(f"{'run folder':<16} {'mean step':>10} {'median':>8} {'90 %':>8} {'slowest':>8}")
    for variant, numbers in found.items():
        keys = ("mean", "median", "p90", "slowest")
        times = " ".join(f"{numbers[f'{key}_seconds']:>6.3f} s" for key in keys)
        print(f"{variant:<16}   {times}")
    remote = found["object store"]
    print(
        f"checkpoint {remote['checkpoint_mb']:.0f} MB, {remote['uploads']} uploaded; for each, CPU "
        f"seconds of the uploading process {remote['uploader_cpu_seconds_each']:.2f}, of the "
        f"server {remote['server_cpu_seconds_each']:.2f}; at most {remote['uploader_mb']:.0f} MB "
        "of memory in the uploading process"
    )
    if options.out is not None:
        asked = {name: getattr(options, name) for name in ("server", "steps", "every", "rounds")}
        result = {"hardware": hardware.named(), **asked, "runs": found}
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


@dataclass
class Run:
    """What was seen of one run."""

    times: list[float]
    checkpoint_mb: float
    uploads: int
    uploader_mb: float
    uploader_cpu_seconds: float
    server_cpu_seconds: float


def summary(runs: "list[Run]") -> dict[str, float]:
    """Of all rounds of one variant together."""
    times = sorted(time for run in runs for time in run.times)
    uploads = sum(run.uploads for run in runs)
    return {
        "mean_seconds": statistics.fmean(times),
        "median_seconds": statistics.median(times),
        "p90_seconds": times[int(len(times) * 0.9)],
        "slowest_seconds": times[-1],
        "checkpoint_mb": runs[0].checkpoint_mb,
        "uploads": uploads,
        "uploader_mb": max(run.uploader_mb for run in runs),
        "uploader_cpu_seconds_each": sum(r.uploader_cpu_seconds for r in runs) / max(1, uploads),
        "server_cpu_seconds_each": sum(r.server_cpu_seconds for r in runs) / max(1, uploads),
    }


def measure(corpus: Path, place: "Path | str", steps: int, every: int | None, server: int) -> Run:
    """One run; the times of its steps, and what its uploading process and the server took."""
    import psutil

    plain = tiny_run.settings(
        corpus,
        place,
        model=MODEL,
        duration=f"{steps}ba",
        train_data__row_tokens=1024,
        train_data__max_seq_len=512,
        batch__rows=2,
        batch__microbatch_rows=2,
        checkpoints__interval=f"{every}ba" if every else None,
        checkpoints__keep="all",
        evaluation__at_end=False,
        compute__threads=1,
    )
    before = sum(psutil.Process(server).cpu_times()[:2])
    process = tiny_run.start(tiny_run.write_yaml(corpus / "run.yaml", plain))
    watch = Watch(process.pid)
    said, _ = process.communicate()
    watch.stop()
    assert process.returncode == 0, said
    from tessera.config import decode
    from tessera.training.config import RunConfig

    folder = decode(RunConfig, plain, "benchmark").folder
    size = next((folder / "checkpoints").glob("step*.pt")).stat().st_size
    return Run(
        times=[record["step_seconds"] for record in tiny_run.metrics(folder)[5:]],
        checkpoint_mb=size / 1e6,
        uploads=steps // every if every is not None and isinstance(place, str) else 0,
        uploader_mb=watch.peak_mb,
        uploader_cpu_seconds=watch.cpu_seconds,
        server_cpu_seconds=sum(psutil.Process(server).cpu_times()[:2]) - before,
    )


class Watch:
    """Looks at the uploading process of a run, several times a second."""

    def __init__(self, parent: int) -> None:
        self.peak_mb = self.cpu_seconds = 0.0
        self._parent, self._done = parent, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        import psutil

        while not self._done.wait(0.2):
            try:
                for child in psutil.Process(self._parent).children(recursive=True):
                    if any("uploader" in word for word in child.cmdline()):
                        self.peak_mb = max(self.peak_mb, child.memory_info().rss / 1e6)
                        self.cpu_seconds = sum(child.cpu_times()[:2])
            except psutil.Error:
                continue


def start_server(kind: str) -> tuple[subprocess.Popen, str]:
    """An S3 server in a process of its own, and its address."""
    moto = (
        "import time; from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
        "server.start(); print(*server.get_host_and_port(), flush=True); time.sleep(1e6)"
    )
    what = ["-c", moto] if kind == "moto" else [str(Path(__file__).with_name("s3_sink.py"))]
    server = subprocess.Popen(
        [sys.executable, *what], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    for line in server.stdout:
        host, _, port = line.strip().partition(" ")
        if port.isdigit():
            return server, f"http://{host}:{port}"
    raise RuntimeError("the S3 server did not start; is moto[server] installed?")


def make_bucket(endpoint: str) -> None:
    """An empty bucket."""
    import boto3

    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)


if __name__ == "__main__":
    sys.exit(main())
