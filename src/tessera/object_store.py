"""Objects in S3, or in what speaks its protocol: read, written whole, listed. Imports no torch.

The client is boto3, which Streaming brings. s3fs is not used: its aiobotocore pins an older
botocore than boto3's, and it hides the conditional writes on which the lease of a run folder
rests. What is only read may be in any place that an installed fsspec driver knows (hf://, gs://).

Two kinds of trouble: `StoreError` is for a person to mend (no such bucket, no permission), and
`StoreUnavailable` may pass by itself (no connection, 503).
"""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

from tessera.files import write_whole
from tessera.paths import join, safe_names, scheme_of

PART_BYTES = 16 * 2**20
UPLOAD_PARTS = 4
"""Parts in flight: an upload holds so many times `PART_BYTES` in memory, whatever its size."""
DOWNLOAD_PARTS = 8
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 10, 60, 3

_CREDENTIALS = {
    "ExpiredToken": "have expired",
    "ExpiredTokenException": "have expired",
    "RequestExpired": "have expired",
    "TokenRefreshRequired": "have expired",
    "InvalidAccessKeyId": "are not known there",
    "InvalidToken": "are not valid",
    "SignatureDoesNotMatch": "are wrong (the secret key does not match)",
    "AuthFailure": "are not valid",
}
_TRANSIENT = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling"}
_RENEW = (
    "renew them (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or ~/.aws), and "
    "start again"
)


UNGUARDED = (
    "this store writes without regard to conditions (If-Match, If-None-Match), so that nothing in "
    "it could refuse a second run; keep the run folder on a disk, or in a store that honours them "
    "as Amazon S3 does"
)


class StoreError(ValueError):
    """An object store that does not do what is asked: its text names the place and the way out."""


class StoreUnavailable(StoreError):
    """An object store that cannot be reached, or says that it cannot serve now."""


class Conflict(Exception):
    """A conditional write that found another object than the one it was to replace."""


@dataclass(frozen=True)
class Entry:
    """An object in a listing."""

    bytes: int
    version: str
    """Another one for another content."""


@dataclass(frozen=True)
class Object:
    """A small object, read."""

    content: bytes
    version: str
    age_seconds: float
    """Since it was written, by the store's own clock: this machine's may be wrong."""


def open_store(place: str) -> "S3Store | ReadOnlyStore":
    """The store of a remote folder; nothing is asked of it yet."""
    return S3Store(place) if scheme_of(place) == "s3" else ReadOnlyStore(place)


class S3Store:
    """The objects under `s3://bucket/folder`, by their names relative to it."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.bucket, _, folder = place.removeprefix("s3://").partition("/")
        self.prefix = f"{folder}/" if folder else ""
        self._made: Any = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            import boto3  # most of a second
            from botocore.config import Config

            self._made = boto3.session.Session().client(
                "s3",
                # Streaming's variable; AWS_ENDPOINT_URL is read by boto3 itself.
                endpoint_url=os.environ.get("S3_ENDPOINT_URL") or None,
                config=Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    max_pool_connections=DOWNLOAD_PARTS + 2,
                    tcp_keepalive=True,
                ),
            )
        return self._made

    def list(self, under: str = "") -> dict[str, Entry]:
        """The objects under a folder ('checkpoints/'), by name.

        Raises:
            StoreError: it cannot be listed, or holds a name that leads out of a folder.
        """
        found = {}
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + under
            )
            for page in pages:
                for item in page.get("Contents", []):
                    name = item["Key"][len(self.prefix) :]
                    if name and not name.endswith("/"):  # what consoles make to show a folder
                        found[name] = Entry(item["Size"], item["ETag"])
        except Exception as error:
            raise self._explained(error, "read") from error
        safe_names(list(found), self.place)
        return found

    def read(self, name: str) -> Object | None:
        """A small object; None if there is none."""
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=self.prefix + name)
            content = answer["Body"].read()
        except Exception as error:
            if _code(error) in {"NoSuchKey", "404"}:
                return None
            raise self._explained(error, "read") from error
        sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(sent) if sent else answer["LastModified"]
        age = (now - answer["LastModified"]).total_seconds()
        return Object(content, answer["ETag"], age)

    def write(
        self, name: str, content: bytes, *, replaces: str | None = None, new: bool = False
    ) -> str:
        """Write a small object whole.

        Args:
            name: its name.
            content: what it is to hold.
            replaces: the version it must still have, if any.
            new: whether there must be none.

        Returns:
            Its version.

        Raises:
            Conflict: somebody else wrote it in between.
            StoreError: it may not be written, or the store knows no conditions.
        """
        condition = {"IfNoneMatch": "*"} if new else {"IfMatch": replaces} if replaces else {}
        arguments = {"Bucket": self.bucket, "Key": self.prefix + name, "Body": content}
        try:
            return self._client.put_object(**arguments, **condition)["ETag"]
        except Exception as error:
            if condition and _code(error) in {
                *("PreconditionFailed", "ConditionalRequestConflict", "412", "409"),
                *("NoSuchKey", "404"),
            }:
                raise Conflict(name) from error
            if condition and _code(error) in {"NotImplemented", "501"}:
                raise StoreError(f"{self.place}: {UNGUARDED}") from error
            raise self._explained(error, "write") from error

    def upload(self, name: str, file: IO[bytes]) -> None:
        """Write a large object from an open file, in parts; it appears when all of them are there.

        boto3 sends a checksum with every part, which the store compares.
        """
        from boto3.s3.transfer import TransferConfig

        settings = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=UPLOAD_PARTS,
        )
        try:
            self._client.upload_fileobj(file, self.bucket, self.prefix + name, Config=settings)
        except Exception as error:
            raise self._explained(error, "write") from error

    def download(self, name: str, path: Path) -> None:
        """Bring an object here: the file has its name once it is whole."""
        from boto3.s3.transfer import TransferConfig

        settings = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=DOWNLOAD_PARTS,
        )
        key = self.prefix + name

        def fetch(file: IO[bytes]) -> None:
            try:
                self._client.download_fileobj(self.bucket, key, file, Config=settings)
            except OSError as error:
                if error.errno is not None and type(error).__module__ == "builtins":
                    raise  # the disk's
                raise self._explained(error, "read") from error
            except Exception as error:
                raise self._explained(error, "read") from error

        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, fetch)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, in this order; one that is gone already is no trouble."""
        try:
            for name in names:
                self._client.delete_object(Bucket=self.bucket, Key=self.prefix + name)
        except Exception as error:
            raise self._explained(error, "write") from error

    def drop_unfinished(self) -> None:
        """Remove the parts of uploads that were cut off, which are paid for though nobody sees."""
        try:
            answer = self._client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix)
            for upload in answer.get("Uploads", []):
                self._client.abort_multipart_upload(
                    Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        except Exception as error:
            raise self._explained(error, "write") from error

    def _explained(self, error: Exception, verb: str) -> StoreError:
        from botocore import exceptions as boto

        if isinstance(error, StoreError):
            return error
        code, place = _code(error), self.place
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
            return StoreError(
                f"{place}: no credentials for it were found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or fill ~/.aws/credentials"
            )
        if code in _CREDENTIALS:
            return StoreError(f"{place}: the credentials {_CREDENTIALS[code]}; {_RENEW}")
        if code == "NoSuchBucket":
            return StoreError(
                f"{place}: there is no bucket '{self.bucket}'; create it, or correct the name"
            )
        if code in {"AccessDenied", "403", "AllAccessDisabled", "MethodNotAllowed"}:
            what = {"read": "reading and listing", "write": "writing and deleting"}[verb]
            return StoreError(
                f"{place}: may not be {'read' if verb == 'read' else 'written to'} with these "
                f"credentials; allow {what} objects there, or name another place"
            )
        if code in {"PermanentRedirect", "301", "AuthorizationHeaderMalformed"}:
            return StoreError(f"{place}: the bucket is in another region; set AWS_DEFAULT_REGION")
        status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        network = isinstance(error, boto.HTTPClientError | boto.ConnectionError | OSError)
        if network or status >= 500 or code in _TRANSIENT or _is_incomplete(error):
            line = (str(error).splitlines() or [type(error).__name__])[0]
            line = re.sub(r"//[^/@\s]*@", "//", line)  # an endpoint's password
            return StoreUnavailable(f"{place}: does not answer ({line})")
        return StoreError(f"{place}: {error}")


class ReadOnlyStore:
    """A folder in any place that an installed fsspec driver reads: hf://, gs:// and others."""

    def __init__(self, place: str) -> None:
        self.place = place

    def _open(self) -> tuple[Any, str]:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.place)
        except ImportError as error:
            raise StoreError(f"{self.place}: {error}") from error

    def list(self, under: str = "") -> dict[str, Entry]:
        """The files under a folder, by name."""
        system, root = self._open()
        found = {}
        try:
            for path, info in system.find(join(root, under), detail=True).items():
                version = str(
                    next((info[k] for k in ("ETag", "etag", "blob_id", "mtime") if k in info), "")
                )
                found[path[len(root) :].strip("/")] = Entry(int(info["size"]), version)
        except Exception as error:  # each driver raises its own
            raise StoreError(f"{self.place}: cannot be read ({error})") from error
        found.pop("", None)
        safe_names(list(found), self.place)
        return found

    def read(self, name: str) -> Object | None:
        """A small file; None if there is none."""
        system, root = self._open()
        try:
            return Object(system.cat_file(join(root, name)), "", 0.0)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise StoreError(f"{self.place}: cannot be read ({error})") from error

    def download(self, name: str, path: Path) -> None:
        """Bring a file here: it has its name once it is whole."""
        system, root = self._open()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.fetched")
        try:
            system.get_file(join(root, name), str(temporary))
            os.replace(temporary, path)
        except Exception as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"{join(self.place, name)}: cannot be read ({error})") from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code(error: Exception) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: Exception) -> dict[str, Any]:
    """What the store answered with; {} if it did not (botocore's own errors hold None there)."""
    return getattr(error, "response", None) or {}


def _is_incomplete(error: Exception) -> bool:
    return type(error).__name__ in {
        *("IncompleteReadError", "ResponseStreamingError", "ProtocolError"),
        *("RetriesExceededError", "S3UploadFailedError", "FlexibleChecksumError"),
    }
