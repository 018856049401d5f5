"""A Hub on loopback for the real huggingface_hub client: repositories in memory, LFS, branches, and faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tests.hub.xet import XetStore

TOKENS = {"hf_writer": ("me", "write"), "hf_reader": ("me", "read")}
ORGANISATIONS = ("my-org",)
LFS_FROM = 1024  # bytes; weights are LFS whatever their size


@dataclass
class Repo:
    """A repository: each branch a list of commits, each commit a title and all its files by path."""

    private: bool
    branches: dict[str, list[tuple[str, str, dict[str, bytes]]]] = field(default_factory=dict)

    def files(self, revision: str) -> dict[str, bytes]:
        if revision in self.branches:
            return self.branches[revision][-1][2]
        return next(files for commits in self.branches.values() for sha, _, files in commits if sha == revision)

    def head(self, revision: str) -> str:
        return self.branches[revision][-1][0] if revision in self.branches else revision

    def knows(self, revision: str) -> bool:
        return revision in self.branches or any(revision == c[0] for cs in self.branches.values() for c in cs)


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD /path" matches: from the `after`-th on, `times` times.

    `status` answers with that status, `html` with a page instead of JSON; `drop` cuts the connection in the middle of the
    body that is sent; `delay` waits before all that.
    """

    pattern: str
    times: int = 1_000_000
    after: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "made to fail"}'
    drop: bool = False
    delay: float = 0.0
    seen: int = 0

    def strikes(self, request: str) -> bool:
        if not re.search(self.pattern, request):
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


class Hub:
    """Start with `with Hub() as hub:`; its address is `hub.url`.

    Attributes:
        repos: id -> `Repo`.
        objects: LFS objects by sha256.
        requests: "METHOD /path" of everything that was asked, in order.
        received: every byte that was sent in a body.
        faults: `Fault`s, of which the first that strikes is taken.
        xet: store of large files, where clients have hf_xet and may use it; `None`, they are sent over LFS.
    """

    def __init__(self, xet: XetStore | None = None) -> None:
        self.xet = xet
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.received: list[bytes] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.http.shutdown()
        self.http.server_close()

    def fault(self, pattern: str, **kwargs: Any) -> Fault:
        self.faults.append(Fault(pattern, **kwargs))
        return self.faults[-1]

    def commit(self, repo: Repo, branch: str, title: str, files: dict[str, bytes]) -> str:
        commits = repo.branches.setdefault(branch, [])
        sha = hashlib.sha1(f"{id(repo)}{branch}{len(commits)}{title}".encode()).hexdigest()
        commits.append((sha, title, files))
        return sha


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    # ---- plumbing ----

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = next((f for f in self.hub.faults if f.strikes(request)), None)
        if fault is not None and fault.delay:
            time.sleep(fault.delay)
        if fault is not None and fault.drop:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self._body()
        with self.hub.lock:
            self.hub.received.append(body)
        if fault is not None and fault.status:
            self._send(fault.status, fault.body, {"Content-Type": "application/json", **fault.headers})
            return
        methods = (self.command, "GET" if self.command == "HEAD" else "")
        found = ((answer, re.fullmatch(pattern, path)) for method, pattern, answer in ROUTES if method in methods)
        answer, match = next(((answer, match) for answer, match in found if match), (None, None))
        if answer is None or match is None:
            self._send(404, b'{"error": "no such endpoint"}', {})
            return
        try:
            with self.hub.lock:
                status, content, headers = answer(self, body, *match.groups())
        except _Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), headers)
            return
        self._send(status, content, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ---- who asks ----

    def user(self) -> tuple[str, str] | None:
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        token = header.removeprefix("Bearer ")
        if token not in TOKENS:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def writer(self, namespace: str) -> None:
        user = self.user()
        if user is None:
            raise _Refusal(401, "Invalid username or password.")
        if user[1] != "write" or namespace not in (user[0], *ORGANISATIONS):
            raise _Refusal(403, f"Forbidden: you have no write access to the namespace {namespace}")

    def repo(self, name: str, write: bool = False) -> Repo:
        if write:
            self.writer(name.partition("/")[0])
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.user() is None):
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def revision(self, repo: Repo, revision: str) -> str:
        if not repo.knows(revision):
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return revision


# ---- what it answers: (status, content, headers) ----

Answer = tuple[int, bytes, dict[str, str]]


def _json(value: Any, status: int = 200) -> Answer:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}


def whoami(h: _Handler, body: bytes) -> Answer:
    user = h.user()
    if user is None:
        raise _Refusal(401, "Invalid username or password.")
    organisations = [{"name": name, "roleInOrg": user[1]} for name in ORGANISATIONS]
    access = {"displayName": "test", "role": user[1]}
    return _json({"type": "user", "name": user[0], "orgs": organisations, "auth": {"accessToken": access}})


def create(h: _Handler, body: bytes) -> Answer:
    asked = json.loads(body)
    user = h.user()
    namespace = asked.get("organization") or (user[0] if user else "")
    h.writer(namespace)
    name = f"{namespace}/{asked['name']}"
    if name in h.hub.repos:
        return _json({"error": "You already created this model repo", "url": f"{h.hub.url}/{name}"}, 409)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    h.hub.repos[name] = Repo(private=private)
    h.hub.commit(h.hub.repos[name], "main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
    return _json({"url": f"{h.hub.url}/{name}", "name": name})


def validate_yaml(h: _Handler, body: bytes) -> Answer:
    content = json.loads(body)["content"]
    match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
    errors = []
    try:
        found = yaml.safe_load(match[1]) if match else {}
        if not isinstance(found, dict):
            errors.append({"message": "metadata must be a mapping"})
    except yaml.YAMLError as error:
        errors.append({"message": str(error)})
    return _json({"errors": errors, "warnings": []}, 400 if errors else 200)


def preupload(h: _Handler, body: bytes, name: str, revision: str) -> Answer:
    repo = h.repo(name, write=True)
    h.revision(repo, revision)
    files = []
    for file in json.loads(body)["files"]:
        path = file["path"]
        large = path.endswith((".safetensors", ".bin", ".pt", ".pth", ".png")) or file["size"] >= 10 * 2**20
        held = repo.files(revision).get(path)
        oid = None
        if held is not None:
            oid = hashlib.sha256(held).hexdigest() if large else _git_oid(held)
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return _json({"files": files})


def lfs_batch(h: _Handler, body: bytes, name: str) -> Answer:
    h.repo(name, write=True)
    objects = []
    for item in json.loads(body)["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in h.hub.objects:
            upload = {"href": f"{h.hub.url}/lfs/{item['oid']}", "header": {}}
            verify = {"href": f"{h.hub.url}/lfs/{item['oid']}/verify", "header": {}}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return _json({"transfer": "basic", "objects": objects})


def lfs_put(h: _Handler, body: bytes, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        raise _Refusal(400, "content does not match its sha256")
    h.hub.objects[oid] = body
    return 200, b"", {}


def lfs_verify(h: _Handler, body: bytes, oid: str) -> Answer:
    if len(h.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
        raise _Refusal(404, "object is not here")
    return _json({})


def xet_token(h: _Handler, body: bytes, name: str, kind: str, revision: str) -> Answer:
    h.repo(name, write=kind == "write")
    if h.hub.xet is None:
        raise _Refusal(404, "no Xet here")
    answer, headers = h.hub.xet.connection()
    status, content, more = _json(answer)
    return status, content, headers | more


def commit(h: _Handler, body: bytes, name: str, revision: str) -> Answer:
    repo = h.repo(name, write=True)
    h.revision(repo, revision)
    files, title = dict(repo.files(revision)), ""
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            title = value["summary"]
        elif entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            if value["oid"] not in h.hub.objects and h.hub.xet is not None:
                with tempfile.TemporaryDirectory() as folder:
                    h.hub.objects[value["oid"]] = h.hub.xet.read(value["oid"], value["size"], folder)
            if value["oid"] not in h.hub.objects:
                raise _Refusal(400, f"LFS object {value['oid']} was not uploaded")
            files[value["path"]] = h.hub.objects[value["oid"]]
        elif entry["key"] == "deletedFile":
            files.pop(value["path"], None)
    found: dict[str, Any] = {"success": True}
    branch = revision
    if "create_pr=1" in h.path:
        branch = f"refs/pr/{1 + sum(b.startswith('refs/pr/') for b in repo.branches)}"
        found["pullRequestUrl"] = f"{h.hub.url}/{name}/discussions/{branch.rpartition('/')[2]}"
    sha = h.hub.commit(repo, branch, title, files)
    return _json(found | {"commitOid": sha, "commitUrl": f"{h.hub.url}/{name}/commit/{sha}"})


def info(h: _Handler, body: bytes, name: str, revision: str = "main") -> Answer:
    repo = h.repo(name)
    h.revision(repo, revision)
    siblings = [{"rfilename": path} for path in repo.files(revision)]
    return _json(
        {"id": name, "modelId": name, "sha": repo.head(revision), "private": repo.private, "siblings": siblings, "tags": []}
    )


def branch(h: _Handler, body: bytes, name: str, revision: str) -> Answer:
    repo = h.repo(name, write=True)
    if revision in repo.branches:
        return _json({"error": "Reference already exists"}, 409)
    h.hub.commit(repo, revision, f"branch {revision}", dict(repo.files("main")))
    return _json({})


def refs(h: _Handler, body: bytes, name: str) -> Answer:
    repo = h.repo(name)
    branches = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c[-1][0]} for b, c in repo.branches.items()]
    return _json({"branches": branches, "tags": [], "converts": []})


def settings(h: _Handler, body: bytes, name: str) -> Answer:
    h.repo(name, write=True).private = json.loads(body).get("visibility") == "private"
    return _json({})


def tree(h: _Handler, body: bytes, name: str, revision: str, _: str | None = None) -> Answer:
    repo = h.repo(name)
    found = []
    for path, content in repo.files(h.revision(repo, revision)).items():
        found.append({"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)})
    return _json(found)


def resolve(h: _Handler, body: bytes, name: str, revision: str, path: str) -> Answer:
    repo = h.repo(name)
    files = repo.files(h.revision(repo, revision))
    if path not in files:
        raise _Refusal(404, f"Entry not found: {path}", "EntryNotFound")
    sha256 = hashlib.sha256(files[path]).hexdigest()
    headers = {"ETag": f'"{sha256}"', "X-Repo-Commit": repo.head(revision)}
    if h.hub.xet is not None and (xet_hash := h.hub.xet.hashes().get(sha256)):
        route = f"{h.hub.url}/api/models/{name}/xet-read-token/{revision}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": route}
    return 200, files[path], headers


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = "([^/]+/[^/]+)"
REV = r"((?:refs/pr/\d+)|[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", f"/api/models/{NAME}/preupload/{REV}", preupload),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/([0-9a-f]{64})", lfs_put),
    ("POST", "/lfs/([0-9a-f]{64})/verify", lfs_verify),
    ("GET", f"/api/models/{NAME}/xet-(read|write)-token/{REV}", xet_token),
    ("POST", f"/api/models/{NAME}/commit/{REV}", commit),
    ("POST", f"/api/models/{NAME}/branch/(.+)", branch),
    ("GET", f"/api/models/{NAME}/refs", refs),
    ("PUT", f"/api/models/{NAME}/settings", settings),
    ("GET", f"/api/models/{NAME}/tree/{REV}(/.*)?", tree),
    ("GET", f"/api/models/{NAME}/revision/{REV}", info),
    ("GET", f"/api/models/{NAME}", info),
    ("GET", f"/{NAME}/resolve/{REV}/(.+)", resolve),
]
