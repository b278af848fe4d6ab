"""A stand-in of the Hugging Face Hub: the parts of its HTTP interface that uploading a model uses.

Large files take the way of LFS: a batch request names those that the hub lacks, each is put to its own address, and the
commit refers to them by hash. The xet protocol is switched off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_standInTokenThatIsSecret"
USER, ORGANISATION = "me", "my-lab"


@dataclass
class Repo:
    """A repository of the stand-in."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])
    messages: list[str] = field(default_factory=list)


@dataclass
class FakeHub:
    """The state of the stand-in, and how it fails."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, by SHA-256; also those of a commit that did not happen."""
    requests: list[str] = field(default_factory=list)
    """Method and path of every request, in order."""
    puts: list[str] = field(default_factory=list)
    """SHA-256 of every large file that was received completely."""
    may_write: bool = True
    drop_put: int | None = None
    """Number of the upload of a large file, from 1, from which on the network fails."""
    commit_status: int = 200
    started: int = 0
    """Uploads of large files that began; they are sent by several threads."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def writes(self) -> list[str]:
        """The requests that send something."""
        return [request for request in self.requests if not request.startswith("GET")]


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def _answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = json.dumps({} if content is None else content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _is_allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
        return False

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"GET {path}")
        if not self._is_allowed():
            return
        if path == "/api/whoami-v2":
            self._answer(200, {"name": USER, "type": "user", "orgs": [{"name": ORGANISATION}]})
            return
        name = path.removeprefix("/api/models/").partition("/revision/")[0]
        if name not in self.hub.repos:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        repo = self.hub.repos[name]
        siblings = [{"rfilename": file} for file in repo.files]
        self._answer(200, {"id": name, "private": repo.private, "sha": repo.commits[-1], "siblings": siblings})

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        self.hub.requests.append(f"PUT {self.path}")
        with self.hub.lock:
            self.hub.started += 1
            fails = self.hub.drop_put is not None and self.hub.started >= self.hub.drop_put
        if fails:
            self.rfile.read(1)
            self.connection.close()
            return
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self.hub.puts.append(oid)
        self._answer(200)

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self._body()
        self.hub.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            has_license = b"license" in body
            self._answer(200, {"errors": [], "warnings": [] if has_license else [{"message": "empty metadata"}]})
        elif not self._is_allowed():
            return
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/preupload/" in path:
            self._preupload(path.removeprefix("/api/models/").partition("/preupload/")[0], json.loads(body))
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._answer(404)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not self.hub.may_write:
            self._answer(403, {"error": "Forbidden"})
        elif name in self.hub.repos:
            self._answer(409, {"error": "You already created this model repo"})
        else:
            private = wanted.get("visibility", "private" if wanted.get("private") else "public") == "private"
            self.hub.repos[name] = Repo(private, {".gitattributes": b""})
            self._answer(200, {"url": f"{self.hub.url}/{name}"})

    def _preupload(self, name: str, wanted: dict[str, Any]) -> None:
        if not self.hub.may_write:
            self._answer(403, {"error": "Forbidden"})
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": _oid(self.hub.repos[name].files.get(file["path"]), file["path"]),
            }
            for file in wanted["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for each in wanted["objects"]:
            actions = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            objects.append({**each, **({} if each["oid"] in self.hub.objects else actions)})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        if self.hub.commit_status != 200:
            self._answer(self.hub.commit_status, {"error": f"Failed for {TOKEN}"})
            return
        lines = [json.loads(line) for line in body.splitlines()]
        header, repo = lines[0]["value"], self.hub.repos[name]
        if header.get("parentCommit") not in (None, repo.commits[-1]):
            self._answer(412, {"error": "A commit has happened since."})
            return
        for line in lines[1:]:
            value = line["value"]
            assert line["key"] in ("file", "lfsFile"), line  # nothing is deleted
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repo.files[value["path"]] = self.hub.objects[value["oid"]]
        repo.messages.append(header["summary"])
        repo.commits.append(hashlib.sha1(body).hexdigest())
        commit = repo.commits[-1]
        self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})


def _oid(content: bytes | None, path: str) -> str | None:
    """Return the hash by which git knows a file."""
    if content is None:
        return None
    if path.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, *, token: str | None = TOKEN) -> Iterator[FakeHub]:
    """Start the stand-in and let huggingface_hub use it, with a token or without one."""
    import huggingface_hub
    from huggingface_hub import constants, hf_api

    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setattr(hf_api, "get_token", lambda: token)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
