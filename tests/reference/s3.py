"""An S3 server on loopback, and a door before it that delays, drops and refuses requests."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "bucket"
_SHUT = b"<Error><Code>%s</Code><Message>by the test</Message></Error>"


@dataclass
class Request:
    """What somebody wants of the server."""

    method: str
    path: str
    """With the query."""
    bytes: int

    @property
    def key(self) -> str:
        return self.path.partition("?")[0].split("/", 2)[-1]


@dataclass
class S3:
    """The server behind its door."""

    endpoint: str
    direct: str
    """The same server past the door."""
    heeds_conditions: bool = True
    """False: as a store that does not know conditional writes, and writes all the same."""
    requests: list[Request] = field(default_factory=list)
    refused: int = 0
    """Of these, how many were not passed on whole, at once."""
    judge: Callable[[Request], "int | float | str | None"] = lambda request: None
    """Of each request: None lets it pass; an int is a status to answer; a float is a delay in
    seconds; 'drop' closes the connection, 'half' after half of the body was passed on; another
    text is an S3 error code, answered with 403."""

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.direct,
            region_name="us-east-1",
            aws_access_key_id="key-of-tests",
            aws_secret_access_key="secret-of-tests",
        )

    def names(self, bucket: str = BUCKET) -> list[str]:
        listed = self.client().list_objects_v2(Bucket=bucket)
        return [item["Key"] for item in listed.get("Contents", [])]

    def read(self, key: str, bucket: str = BUCKET) -> bytes:
        return self.client().get_object(Bucket=bucket, Key=key)["Body"].read()

    def objects(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """Content by what follows the prefix."""
        names = [name for name in self.names(bucket) if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.read(name, bucket) for name in names}

    def put(self, bucket: str, files: dict[str, bytes]) -> None:
        """Make a bucket that holds these files."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for key, content in files.items():
            client.put_object(Bucket=bucket, Key=key, Body=content)

    def deny(self, *parts: str) -> None:
        """Nobody has permission where a part is in the path."""
        self.judge = lambda request: (
            "AccessDenied" if any(part in request.path for part in parts) else None
        )

    def fail_each(self, count: int) -> None:
        """Answer each so-many-th request with 503; never for 0."""
        self.judge = lambda request: 503 if count and len(self.requests) % count == 0 else None


def environment(folder: Path) -> dict[str, str]:
    """Credentials of tests, and no file of the user's: `folder` has none."""
    return {
        "AWS_ACCESS_KEY_ID": "key-of-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(folder / "no-aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-aws-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "TESSERA_CACHE": str(folder / "cache"),
    }


@contextmanager
def serve() -> Iterator[S3]:
    """Start both, with an empty bucket; credentials are the environment's."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    inner = http.client.HTTPConnection(host, port)
    inner.request("POST", "/moto-api/reset")  # what one server keeps, all of a process share
    inner.getresponse().read()
    s3 = S3("", f"http://{host}:{port}")
    door = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Door,), {"s3": s3}))
    door.daemon_threads = True
    door.handle_error = lambda *about: None  # clients that went away are what is tested
    s3.endpoint = f"http://127.0.0.1:{door.server_address[1]}"
    threading.Thread(target=door.serve_forever, daemon=True).start()
    try:
        yield s3
    finally:
        door.shutdown()
        server.stop()


class _Door(BaseHTTPRequestHandler):
    s3: S3
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(self.command, self.path, length)
        self.s3.requests.append(request)
        verdict = self.s3.judge(request)
        self.s3.refused += verdict is not None
        if verdict == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self._body(length)
        if verdict == "half":
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(verdict, float):
            time.sleep(verdict)
        elif verdict is not None:
            code = verdict if isinstance(verdict, str) else "ServiceUnavailable"
            self._answer(verdict if isinstance(verdict, int) else 403, _SHUT % code.encode())
            return
        inner = http.client.HTTPConnection(self.s3.direct.removeprefix("http://"), timeout=60)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in {"expect", "connection", "transfer-encoding"}
            and (self.s3.heeds_conditions or name.lower() not in {"if-match", "if-none-match"})
        }
        inner.request(self.command, self.path, body=body, headers=headers)
        answer = inner.getresponse()
        content = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        self.wfile.write(content)
        inner.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(length)
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
