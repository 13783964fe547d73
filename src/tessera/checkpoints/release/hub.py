"""Pushing a release to the Hugging Face Hub: a branch per revision, and the index on `main`."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tessera.checkpoints.checkpoint import CheckpointError
from tessera.checkpoints.safe_files import one_line
from tessera.retry import persistently

PUSHED = "SHA256SUMS"
"""The digests of a revision; on the Hub with the same content, the revision is there whole."""

_FINAL_STATUS = {400, 401, 403, 404, 409, 422}
"""Answers that trying again does not change."""

_log = logging.getLogger(__name__)


def push(
    out: str | Path,
    revisions: Sequence[str],
    repository: str,
    *,
    attempts: int = 5,
    first_pause_seconds: float = 2.0,
) -> None:
    """Push revisions that are not on the Hub yet, then the index and the newest model to `main`.

    Each revision is one commit on a branch of its name, so it is there whole or not at all; an
    interrupted push is continued by calling this again. Endpoint and token are huggingface_hub's
    own (`HF_ENDPOINT`, `HF_TOKEN` or `hf auth login`).

    Args:
        out: folder of the release, with a folder per revision.
        revisions: names, in the order of training.
        repository: `org/name`, created if need be.
        attempts: how often each request is tried; the pause doubles between attempts.
        first_pause_seconds: before the second attempt.

    Raises:
        CheckpointError: the Hub refused, or could not be reached; says what is pushed already.
    """
    import huggingface_hub

    out = Path(out)
    api = huggingface_hub.HfApi()
    done: list[str] = []

    def request(what: str, work: Callable[[], object]) -> None:
        def warn(attempt: int, seconds: float, error: Exception) -> None:
            _log.warning("could not %s; again in %.0f s: %s", what, seconds, one_line(error))

        try:
            persistently(
                work,
                attempts=attempts,
                first_pause_seconds=first_pause_seconds,
                is_final=_is_refusal,
                before_pause=warn,
            )
        except Exception as error:  # requests, httpx and the Hub have no base class in common
            raise CheckpointError(
                f"{repository}: could not {what} ({one_line(error)}). {len(done)} of "
                f"{len(revisions)} revisions are pushed; the same command continues"
            ) from error

    request("create it", lambda: api.create_repo(repository, exist_ok=True))
    for name in revisions:
        folder = out / name
        if not _is_pushed(api, repository, name, folder):
            branch = partial(api.create_branch, repository, branch=name, exist_ok=True)
            request(f"make the branch {name}", branch)
            request(f"push {name}", partial(_commit, api, repository, folder, name))
        done.append(name)
        _log.info("%s: %s is pushed", repository, name)
    if revisions:
        newest = out / revisions[-1]
        request("push the index", partial(_commit_index, api, repository, out, newest))


def _is_refusal(error: Exception) -> bool:
    return getattr(getattr(error, "response", None), "status_code", None) in _FINAL_STATUS


def _commit(api: Any, repository: str, folder: Path, name: str) -> None:
    api.create_commit(repository, _additions(folder), commit_message=name, revision=name)


def _commit_index(api: Any, repository: str, out: Path, newest: Path) -> None:
    """Put the newest model on `main`, under the index instead of its own card."""
    from huggingface_hub import CommitOperationAdd

    model = [op for op in _additions(newest) if op.path_in_repo not in {"README.md", PUSHED}]
    index = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=out / name)
        for name in ("README.md", "index.json")
    ]
    api.create_commit(repository, model + index, commit_message="Index of the revisions")


def _additions(folder: Path) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    return [
        CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _is_pushed(api: Any, repository: str, name: str, folder: Path) -> bool:
    """Whether the Hub has this very revision: its digests are the last word on every file."""
    content = (folder / PUSHED).read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    try:
        found = api.get_paths_info(repository, [PUSHED], revision=name)
    except Exception as error:
        # No such branch yet, or no connection: pushing finds out which, and says so.
        _log.debug("%s: %s is not known to be pushed: %s", repository, name, error)
        return False
    return any(getattr(entry, "blob_id", None) == blob for entry in found)
