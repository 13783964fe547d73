"""Fixtures that several files use."""

import pytest
import tiny_run
from reference.s3 import BUCKET, S3, environment, serve

from tessera.training.remote import restore


@pytest.fixture(autouse=True)
def nothing_left_running():
    """A test that fails leaves no training behind that would slow the others."""
    yield
    for process in tiny_run.STARTED:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    tiny_run.STARTED.clear()


@pytest.fixture
def s3(tmp_path, monkeypatch) -> S3:
    """An object store with an empty bucket, which this process and those it starts will use."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(restore, "PATIENCE_SECONDS", 20.0)
    with serve() as server:
        monkeypatch.setenv("S3_ENDPOINT_URL", server.endpoint)
        server.client().create_bucket(Bucket=BUCKET)
        yield server
