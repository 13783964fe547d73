"""Object stores on loopback: an S3 server, and a gate before it that can be told to fail."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from reference.fake_hub import JsonHandler

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Gate:
    """Passes requests on to a server, unless it was told to fail.

    Attributes:
        url: Its address.
        every: Each so-many-th request is answered with 503; 0 for none.
        denied: Parts of a path to which nobody has permission.
        requests: (method, path) of all that came.
    """

    def __init__(self, port):
        self.port, self.url = port, ""
        self.every, self.denied, self.requests, self.failed = 0, [], [], 0


class _Handler(BaseHTTPRequestHandler):
    gate: Gate
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = dict((n.lower(), v) for n, v in headers).get("content-length", len(body))
        self.send_header("Content-Length", str(length if self.command == "HEAD" else len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self):
        gate = self.gate
        if self.headers.get("Expect") == "100-continue":
            self.close_connection = False
        content = self.body()
        gate.requests.append((self.command, self.path))
        if any(part in self.path for part in gate.denied):
            return self.answer(403, DENIED, [("Content-Type", "application/xml")])
        if gate.every and len(gate.requests) % gate.every == 0:
            gate.failed += 1
            return self.answer(503, b"<Error><Code>ServiceUnavailable</Code></Error>")
        connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=60)
        headers = {n: v for n, v in self.headers.items() if n.lower() not in ("transfer-encoding",)}
        headers["Content-Length"] = str(len(content))
        connection.request(self.command, self.path, content, headers)
        response = connection.getresponse()
        self.answer(response.status, response.read(), response.getheaders())
        connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def s3_server():
    """A moto server with a gate before it; yields the gate."""
    port = free_port()
    server = Path(sys.executable).parent / "moto_server"
    process = subprocess.Popen(
        [str(server), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    gate = Gate(port)
    handler = type("Handler", (_Handler,), {"gate": gate})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    gate.url = f"http://127.0.0.1:{proxy.server_port}"
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "no S3 server"
                time.sleep(0.1)
        yield gate
    finally:
        proxy.shutdown()
        proxy.server_close()
        process.terminate()
        process.wait()


def credentials(gate):
    """The environment in which programs talk to the gate."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": gate.url,
        "S3_ENDPOINT_URL": gate.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
    }


def bucket(gate, name):
    """A new bucket, as boto3 knows it."""
    import boto3

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    address = f"http://127.0.0.1:{gate.port}"
    store = boto3.resource("s3", endpoint_url=address, region_name="us-east-1", **keys)
    made = store.Bucket(name)
    made.create()
    return made


def objects(made, prefix=""):
    """{key: content} of a bucket."""
    return {
        found.key.removeprefix(prefix): found.get()["Body"].read()
        for found in made.objects.filter(Prefix=prefix)
    }


class _HubHandler(JsonHandler):
    files: dict

    def handle_any(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            return self.api("/".join(parts[2:4]), parts[4:], content)
        if parts[0] == "datasets" and parts[3] == "resolve":
            found = self.files.get("/".join(parts[1:3]), {}).get("/".join(parts[5:]))
            if found is None:
                return self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})
            first, last = 0, len(found)
            headers = {"X-Repo-Commit": "c" * 40, "ETag": str(len(found))}
            if asked := self.headers.get("Range"):
                first, last = asked.removeprefix("bytes=").split("-")
                first, last = int(first), int(last or len(found)) + 1
                headers["Content-Range"] = f"bytes {first}-{last - 1}/{len(found)}"
            return self.answer(206 if asked else 200, found[first:last], headers)
        return self.answer(404, {})

    do_GET = do_HEAD = do_POST = handle_any

    def api(self, name, parts, content):
        if name not in self.files:
            return self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        files = self.files[name]
        if not parts or parts[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self.answer(200, {"id": name, "sha": "c" * 40, "siblings": siblings})
        if parts[0] == "tree":
            recursive = "recursive=true" in self.path.lower()
            return self.answer(200, self.entries(files, "/".join(parts[2:]), recursive))
        asked = json.loads(content)["paths"] if content[:1] == b"{" else []
        asked = asked or parse_qs(content.decode()).get("paths", [])
        found = [entry for entry in self.entries(files, "", True) if entry["path"] in asked]
        return self.answer(200, found)

    @staticmethod
    def entries(files, below, recursive):
        found = {}
        for path, content in files.items():
            folders = path.split("/")[:-1]
            for depth in range(1, len(folders) + 1):
                folder = "/".join(folders[:depth])
                found[folder] = {"type": "directory", "path": folder, "oid": "d" * 40, "size": 0}
            found[path] = {"type": "file", "path": path, "size": len(content), "oid": "f" * 40}
        prefix = f"{below}/" if below else ""
        return [
            entry
            for path, entry in sorted(found.items())
            if path.startswith(prefix) and (recursive or "/" not in path.removeprefix(prefix))
        ]


@contextmanager
def data_hub(files):
    """A hub that holds data sets, {repository: {path: content}}; yields its address."""
    handler = type("Handler", (_HubHandler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
