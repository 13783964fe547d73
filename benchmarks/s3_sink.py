"""An S3 server that costs next to nothing: large bodies are read and forgotten.

    python benchmarks/s3_sink.py      # prints its address, serves until it is killed

Beside what is measured on the same machine, a real server's own work (hashing, storing, Python) is
most of what is seen. This one keeps small objects and the names and sizes of large ones: enough for
a run folder that is written to and never restored.
"""

import itertools
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

SMALL_BYTES = 2**20
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_COUNT = itertools.count(1)


class Sink(ThreadingHTTPServer):
    """The server and its objects: (content or None, size, version, when written) by key."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes | None, int, str, float]] = {}
        self.parts: dict[str, int] = {}


class _Handler(BaseHTTPRequestHandler):
    server: Sink
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def _swallow(self) -> tuple[bytes | None, int]:
        """The body if it is small, and its size."""
        left = size = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if size <= SMALL_BYTES:
            return self.rfile.read(size), size
        buffer = memoryview(bytearray(2**20))
        while left:
            left -= self.rfile.readinto(buffer[: min(left, len(buffer))])
        return None, size

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response_only(status)
        self.send_header("Date", formatdate(usegmt=True))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, text: str, status: int = 200) -> None:
        self._answer(status, (_XML + text).encode(), Content_Type="application/xml")

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        found = urlsplit(self.path)
        return found.path.partition("/")[2].partition("/")[2], parse_qs(
            found.query, keep_blank_values=True
        )

    def do_PUT(self) -> None:  # noqa: N802
        key, query = self._asked()
        content, size = self._swallow()
        version = f'"{next(_COUNT):032x}"'
        there = self.server.objects.get(key)
        wanted = self.headers.get("If-Match")
        if (there and self.headers.get("If-None-Match")) or (
            wanted and (there is None or there[2] != wanted)
        ):
            self._xml("<Error><Code>PreconditionFailed</Code></Error>", 412)
            return
        if "partNumber" in query:
            self.server.parts[key] = self.server.parts.get(key, 0) + size
        elif key:
            self.server.objects[key] = content, size, version, time.time()
        self._answer(200, ETag=version)

    def do_POST(self) -> None:  # noqa: N802
        key, query = self._asked()
        self._swallow()
        if "uploads" in query:
            self._xml(
                "<InitiateMultipartUploadResult><UploadId>1</UploadId>"
                "</InitiateMultipartUploadResult>"
            )
            return
        version = f'"{next(_COUNT):032x}"'
        self.server.objects[key] = None, self.server.parts.pop(key, 0), version, time.time()
        self._xml(
            f"<CompleteMultipartUploadResult><ETag>{version}</ETag></CompleteMultipartUploadResult>"
        )

    def do_GET(self) -> None:  # noqa: N802
        key, query = self._asked()
        if "uploads" in query:
            self._xml("<ListMultipartUploadsResult></ListMultipartUploadsResult>")
        elif not key:
            prefix = query.get("prefix", [""])[0]
            listed = "".join(
                f"<Contents><Key>{name}</Key><Size>{size}</Size><ETag>{version}</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for name, (_, size, version, _) in sorted(self.server.objects.items())
                if name.startswith(prefix)
            )
            self._xml(f"<ListBucketResult>{listed}</ListBucketResult>")
        elif key in self.server.objects:
            content, _, version, written = self.server.objects[key]
            when = formatdate(written, usegmt=True)
            self._answer(200, content or b"", ETag=version, Last_Modified=when)
        else:
            self._xml("<Error><Code>NoSuchKey</Code></Error>", 404)

    def do_DELETE(self) -> None:  # noqa: N802
        self._swallow()
        self.server.objects.pop(self._asked()[0], None)
        self._answer(204)


if __name__ == "__main__":
    sink = Sink()
    print(*sink.server_address, flush=True)
    try:
        sink.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)
