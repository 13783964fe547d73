"""What a run folder in an object store costs the steps of a training.

    python benchmarks/upload.py [--steps 60] [--every 6] [--out results/upload.json]

The same run three times: without checkpoints, saving them to the local disk, and saving them to an
S3 server in a process of its own on this machine. A checkpoint is due every `--every` steps. The
time of a step does not contain the time of saving; what uploading costs is how much slower the
steps are while one is under way, on a machine whose cores it shares with the server.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

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
    """Run the three, print a table, write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=6, help="steps between checkpoints (6)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = tiny_run.make_corpus(folder / "corpus", documents=600)
        server, endpoint = start_server()
        os.environ.update(
            S3_ENDPOINT_URL=endpoint,
            AWS_ACCESS_KEY_ID="benchmark",
            AWS_SECRET_ACCESS_KEY="benchmark",
            AWS_DEFAULT_REGION="us-east-1",
            TESSERA_CACHE=str(folder / "cache"),
        )
        try:
            make_bucket(endpoint)
            measured = {
                "no checkpoints": measure(corpus, folder / "none", options.steps, None),
                "local disk": measure(corpus, folder / "local", options.steps, options.every),
                "object store": measure(corpus, f"s3://{BUCKET}/run", options.steps, options.every),
            }
        finally:
            server.kill()
            server.wait()
    print(f"{'run folder':<16} {'median step':>12} {'90 %':>8} {'slowest':>8} {'whole run':>10}")
    for variant, found in measured.items():
        print(
            f"{variant:<16} {found['median_seconds']:>10.3f} s {found['p90_seconds']:>6.3f} s "
            f"{found['slowest_seconds']:>6.3f} s {found['run_seconds']:>8.1f} s"
        )
    remote = measured["object store"]
    print(
        f"checkpoint {remote['checkpoint_mb']:.0f} MB; the uploading process: at most "
        f"{remote['uploader_mb']:.0f} MB of memory, {remote['uploader_cpu_seconds']:.1f} s of CPU"
    )
    if options.out is not None:
        result = {"hardware": hardware.named(), "steps": options.steps, "every": options.every}
        options.out.write_text(json.dumps({**result, "runs": measured}, indent=2) + "\n")
    return 0


def measure(corpus: Path, place: "Path | str", steps: int, every: int | None) -> dict[str, Any]:
    """One run; the times of its steps, and what its uploading process took."""
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
        checkpoints__keep=2,
        evaluation__at_end=False,
        compute__threads=1,
    )
    path = tiny_run.write_yaml(corpus / "run.yaml", plain)
    process = tiny_run.start(path)
    watch = Watch(process.pid)
    begin = time.perf_counter()
    said, _ = process.communicate()
    seconds = time.perf_counter() - begin
    watch.stop()
    assert process.returncode == 0, said
    from tessera.config import decode
    from tessera.training.config import RunConfig

    folder = decode(RunConfig, plain, "benchmark").folder
    times = sorted(record["step_seconds"] for record in tiny_run.metrics(folder)[5:])
    size = next((folder / "checkpoints").glob("step*.pt")).stat().st_size
    return {
        "median_seconds": statistics.median(times),
        "p90_seconds": times[int(len(times) * 0.9)],
        "slowest_seconds": times[-1],
        "run_seconds": seconds,
        "checkpoint_mb": size / 1e6,
        "uploader_mb": watch.peak_mb,
        "uploader_cpu_seconds": watch.cpu_seconds,
    }


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


def start_server() -> tuple[subprocess.Popen, str]:
    """Moto's S3 server, in a process of its own."""
    script = (
        "import time; from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
        "server.start(); print(*server.get_host_and_port(), flush=True); time.sleep(1e6)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
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
