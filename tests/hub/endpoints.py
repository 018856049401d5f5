"""The endpoints of the Hub that huggingface_hub calls, and what they refuse, without HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.hub.storage import Repo, Storage, git_oid

TOKENS = {"hf_writer": ("me", "write"), "hf_reader": ("me", "read"), "hf_stranger": ("stranger", "write")}
ORGANISATIONS = ("my-org",)
ALWAYS_LFS = (".safetensors", ".bin", ".pt", ".pth", ".png")
LFS_FROM = 10 * 2**20  # bytes

Answer = tuple[int, bytes, dict[str, str]]  # status, content, headers


class Refusal(Exception):
    """A request that the Hub refuses, with the status and the error code of its answer."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Request:
    """What an endpoint sees of a request: the stored state, the Authorization header, the address and the body."""

    hub: Storage
    authorization: str
    url: str
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def user(self) -> tuple[str, str] | None:
        """Name and role of the token's owner; `None` without a token."""
        if not self.authorization:
            return None
        token = self.authorization.removeprefix("Bearer ")
        if token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def require_user(self) -> tuple[str, str]:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return user

    def require_writer(self, namespace: str) -> None:
        name, role = self.require_user()
        if role != "write" or namespace not in (name, *ORGANISATIONS):
            raise Refusal(403, f"Forbidden: you have no write access to the namespace {namespace}")

    def repo(self, name: str, revision: str | None = None, write: bool = False) -> Repo:
        """The repository, if the user may see it (or write to it) and it has the revision.

        Every user may write to a pull request that is being opened, or that they have opened.
        """
        repo = self.hub.repos.get(name)
        if write:
            user, role = self.require_user()
            owner = repo.authors.get(revision or "") if repo is not None else None
            if role != "write" or not ("create_pr=1" in self.url or owner == user):
                self.require_writer(name.partition("/")[0])
        if repo is None or (repo.private and self.user() is None):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if revision is not None and not repo.has(revision):
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo


def _json(value: Any, status: int = 200) -> Answer:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}


def whoami(request: Request) -> Answer:
    name, role = request.require_user()
    organisations = [{"name": organisation, "roleInOrg": role} for organisation in ORGANISATIONS]
    access = {"displayName": "test", "role": role}
    return _json({"type": "user", "name": name, "orgs": organisations, "auth": {"accessToken": access}})


def create(request: Request) -> Answer:
    given = request.json()
    user = request.user()
    namespace = given.get("organization") or (user[0] if user else "")
    request.require_writer(namespace)
    name = f"{namespace}/{given['name']}"
    url = f"{request.hub.url}/{name}"
    if name in request.hub.repos:
        return _json({"error": "You already created this model repo", "url": url}, 409)
    repo = Repo(private=given.get("visibility") == "private" or bool(given.get("private")))
    request.hub.commit(repo, "main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
    request.hub.repos[name] = repo
    return _json({"url": url, "name": name})


def validate_yaml(request: Request) -> Answer:
    errors = [{"message": message} for message in metadata_errors(request.json()["content"])]
    return _json({"errors": errors, "warnings": []}, 400 if errors else 200)


def metadata_errors(card: str) -> Iterator[str]:
    """What the Hub refuses in the metadata of a card."""
    match = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        yield str(error)
        return
    if not isinstance(found, dict):
        yield "metadata must be a mapping"
        return
    for key in ("base_model", "datasets"):
        for name in _listed(found.get(key, [])):
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
                yield f'"{key}" with value "{name}" is not valid. Use an id of the Hub.'
    for key in ("license", "library_name", "pipeline_tag", "base_model_relation"):
        if key in found and not isinstance(found[key], str):
            yield f'"{key}" must be a string'
    for key in ("tags", "language", "metrics"):
        if key in found and not all(isinstance(each, str) for each in _listed(found[key])):
            yield f'"{key}" must be a string or a list of strings'
    for model in found.get("model-index", []):
        if not isinstance(model.get("name"), str):
            yield '"model-index[0].name" must be a string'
        for result in model.get("results", []):
            for key in ("name", "type"):
                if not isinstance(result["dataset"].get(key), str):
                    yield f'"model-index[0].results[0].dataset.{key}" must be a string'
            for metric in result["metrics"]:
                value = metric.get("value")
                if value is None or (isinstance(value, float) and not math.isfinite(value)):
                    yield '"model-index[0].results[0].metrics[0].value" must be a finite number'


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def preupload(request: Request, name: str, revision: str) -> Answer:
    repo = request.repo(name, revision, write=True)
    files = []
    for file in request.json()["files"]:
        path = file["path"]
        large = path.endswith(ALWAYS_LFS) or file["size"] >= LFS_FROM
        held = repo.files(revision).get(path)
        oid = None
        if held is not None:
            oid = hashlib.sha256(held).hexdigest() if large else git_oid(held)
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return _json({"files": files})


def lfs_batch(request: Request, name: str) -> Answer:
    request.require_user()
    request.repo(name)
    objects = []
    for item in request.json()["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in request.hub.objects:
            url = f"{request.hub.url}/lfs/{item['oid']}"
            answer["actions"] = {"upload": {"href": url, "header": {}}, "verify": {"href": f"{url}/verify", "header": {}}}
        objects.append(answer)
    return _json({"transfer": "basic", "objects": objects})


def lfs_put(request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refusal(400, "content does not match its sha256")
    request.hub.objects[oid] = request.body
    return 200, b"", {}


def lfs_verify(request: Request, oid: str) -> Answer:
    if len(request.hub.objects.get(oid, b"")) != request.json()["size"]:
        raise Refusal(404, "the object was not uploaded")
    return _json({})


def xet_token(request: Request, name: str, kind: str, revision: str) -> Answer:
    request.repo(name, write=kind == "write")
    if request.hub.xet is None:
        raise Refusal(404, "this Hub has no Xet store")
    answer, headers = request.hub.xet.connection()
    status, content, more = _json(answer)
    return status, content, headers | more


def commit(request: Request, name: str, revision: str) -> Answer:
    repo = request.repo(name, revision, write=True)
    files, title = dict(repo.files(revision)), ""
    for line in request.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            title = value["summary"]
        elif entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = _large_file(request.hub, value["oid"], value["size"])
        elif entry["key"] == "deletedFile":
            files.pop(value["path"], None)
    for message in metadata_errors(files.get("README.md", b"").decode()):
        raise Refusal(400, f"Invalid metadata in README.md: {message}")
    found: dict[str, Any] = {"success": True}
    branch = revision
    if "create_pr=1" in request.url:
        number = 1 + sum(existing.startswith("refs/pr/") for existing in repo.branches)
        branch = f"refs/pr/{number}"
        repo.authors[branch] = request.require_user()[0]
        found["pullRequestUrl"] = f"{request.hub.url}/{name}/discussions/{number}"
    sha = request.hub.commit(repo, branch, title, files)
    return _json(found | {"commitOid": sha, "commitUrl": f"{request.hub.url}/{name}/commit/{sha}"})


def _large_file(hub: Storage, sha256: str, size: int) -> bytes:
    if sha256 not in hub.objects and hub.xet is not None:
        with tempfile.TemporaryDirectory() as folder:
            hub.objects[sha256] = hub.xet.read(sha256, size, folder)
    if sha256 not in hub.objects:
        raise Refusal(400, f"LFS object {sha256} was not uploaded")
    return hub.objects[sha256]


def info(request: Request, name: str, revision: str = "main") -> Answer:
    repo = request.repo(name, revision)
    siblings = [{"rfilename": path} for path in repo.files(revision)]
    return _json(
        {"id": name, "modelId": name, "sha": repo.head(revision), "private": repo.private, "siblings": siblings, "tags": []}
    )


def branch(request: Request, name: str, revision: str) -> Answer:
    repo = request.repo(name, write=True)
    if revision.startswith("refs/"):
        raise Refusal(400, f"Invalid branch name: {revision}")
    if revision in repo.branches:
        return _json({"error": "Reference already exists"}, 409)
    request.hub.commit(repo, revision, f"branch {revision}", dict(repo.files("main")))
    return _json({})


def refs(request: Request, name: str) -> Answer:
    repo = request.repo(name)
    branches = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": repo.head(b)} for b in repo.branches]
    return _json({"branches": branches, "tags": [], "converts": []})


def settings(request: Request, name: str) -> Answer:
    request.repo(name, write=True).private = request.json().get("visibility") == "private"
    return _json({})


def tree(request: Request, name: str, revision: str, _: str | None = None) -> Answer:
    found = []
    for path, content in request.repo(name, revision).files(revision).items():
        found.append({"type": "file", "path": path, "size": len(content), "oid": git_oid(content)})
    return _json(found)


def resolve(request: Request, name: str, revision: str, path: str) -> Answer:
    repo = request.repo(name, revision)
    files = repo.files(revision)
    if path not in files:
        raise Refusal(404, f"Entry not found: {path}", "EntryNotFound")
    sha256 = hashlib.sha256(files[path]).hexdigest()
    headers = {"ETag": f'"{sha256}"', "X-Repo-Commit": repo.head(revision)}
    if request.hub.xet is not None and (xet_hash := request.hub.xet.hashes().get(sha256)):
        route = f"{request.hub.url}/api/models/{name}/xet-read-token/{revision}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": route}
    return 200, files[path], headers


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


def answer(method: str, path: str, request: Request) -> Answer:
    """The answer of the first route that matches. HEAD is answered like GET; the server leaves the content out."""
    wanted = "GET" if method == "HEAD" else method
    for route_method, pattern, endpoint in ROUTES:
        match = re.fullmatch(pattern, path)
        if route_method == wanted and match:
            return endpoint(request, *match.groups())
    raise Refusal(404, "no such endpoint")
