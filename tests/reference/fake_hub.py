"""A Hugging Face Hub on loopback: repositories, branches, LFS uploads, commits and downloads.

One hub for models, which can be told to fail, and one that only hands out data sets. Everything
is in memory.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Hub:
    """The state of the server: `branches[repository][branch]` maps paths to bytes."""

    def __init__(self):
        self.branches = {}
        self.commits = []
        self.blobs = {}
        self.uploaded_bytes = 0
        self.failures = {}
        """Part of a path -> statuses to answer with next; 0 drops the connection."""
        self.url = ""

    def next_failure(self, path):
        for part, statuses in self.failures.items():
            if part in path and statuses:
                return statuses.pop(0)
        return None


class JsonHandler(BaseHTTPRequestHandler):
    """A handler that answers with bytes as they are, or with JSON."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status=200, content=None, headers=None):
        content = {} if content is None else content
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Handler(JsonHandler):
    hub: Hub

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        failure = self.hub.next_failure(path)
        if failure == 0:
            self.close_connection = True
            self.connection.close()
            return
        if failure is not None:
            self.answer(failure, {"error": "told to fail"})
            return
        self.route(path.strip("/").split("/"), body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def route(self, parts, body):
        hub = self.hub
        if parts[0] == "lfs":
            if parts[1] != "verify":
                assert hashlib.sha256(body).hexdigest() == parts[1], "a torn upload"
                hub.blobs[parts[1]] = body
                hub.uploaded_bytes += len(body)
            return self.answer()
        if parts[:2] == ["api", "validate-yaml"]:
            return self.answer(content={"errors": [], "warnings": []})
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            exists = name in hub.branches
            hub.branches.setdefault(name, {"main": {}})
            return self.answer(409 if exists else 200, {"url": f"{hub.url}/{name}"})
        if parts[:2] == ["api", "models"]:
            return self.model_api("/".join(parts[2:4]), parts[4:], body)
        if parts[2:5] == ["info", "lfs", "objects"] and parts[1].endswith(".git"):
            return self.lfs_batch(json.loads(body))
        if len(parts) > 4 and parts[2] == "resolve":
            return self.download("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.answer(404, {"error": "no such page"})

    def lfs_batch(self, asked):
        objects = []
        for wanted in asked["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify/{wanted['oid']}"},
                }
            objects.append(entry)
        self.answer(content={"transfer": "basic", "objects": objects})

    def model_api(self, name, parts, body):
        branches = self.hub.branches.get(name)
        if branches is None:
            return self.answer(404, {"error": "x"}, {"X-Error-Code": "RepoNotFound"})
        what, branch = parts[0], "/".join(parts[1:])
        if what == "branch":
            exists = branch in branches
            branches.setdefault(branch, dict(branches["main"]))
            return self.answer(409 if exists else 200)
        branch = next((b for b in branches if branch in (b, _commit_id(name, b))), branch)
        if branch not in branches:
            return self.answer(404, {"error": "x"}, {"X-Error-Code": "RevisionNotFound"})
        files = branches[branch]
        if what == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            content = {"id": name, "sha": _commit_id(name, branch), "siblings": siblings}
            return self.answer(content={**content, "tags": [], "private": False})
        if what == "tree":
            return self.answer(content=[_entry(path, files[path]) for path in sorted(files)])
        if what == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            found = [_entry(path, files[path]) for path in asked if path in files]
            return self.answer(content=found)
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(content={"files": modes})
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines() if line]
            changed = {}
            for line in lines[1:]:
                value = line["value"]
                is_file = line["key"] == "file"
                changed[value["path"]] = (
                    base64.b64decode(value["content"]) if is_file else self.hub.blobs[value["oid"]]
                )
            files.update(changed)
            self.hub.commits.append((branch, sorted(changed)))
            url = f"{self.hub.url}/{name}/commit/{_commit_id(name, branch)}"
            return self.answer(
                content={"success": True, "commitOid": _commit_id(name, branch), "commitUrl": url}
            )
        return self.answer(404, {"error": "no such call"})

    def download(self, name, revision, path):
        for branch, files in self.hub.branches.get(name, {}).items():
            if revision in (branch, _commit_id(name, branch)) and path in files:
                headers = {"X-Repo-Commit": _commit_id(name, branch), "ETag": _blob(files[path])}
                return self.answer(content=files[path], headers=headers)
        return self.answer(404, {"error": "x"}, {"X-Error-Code": "EntryNotFound"})


def _entry(path, content):
    return {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}


def _blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit_id(name, branch):
    return hashlib.sha1(f"{name}@{branch}".encode()).hexdigest()


class _DataHandler(JsonHandler):
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
def _serving(handler):
    """Answers on a free port of the loopback interface; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def running():
    """A hub for models, empty at first."""
    hub = Hub()
    with _serving(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub


@contextmanager
def data_hub(files):
    """A hub that holds data sets, {repository: {path: content}}; yields its address."""
    with _serving(type("Handler", (_DataHandler,), {"files": files})) as url:
        yield url
