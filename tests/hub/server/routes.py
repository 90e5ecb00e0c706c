"""The routes of the test Hub: what each HTTP request reads from or changes in the store."""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from .store import HubError, Repo, StoredFile

if TYPE_CHECKING:
    from .server import HubState


@dataclass
class Request:
    """One request. `path` is still quoted: revisions and file names arrive with their slashes as %2F."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: HTTPMessage
    body: bytes
    token: str
    user: str | None

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")

    def require_user(self) -> str:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user


@dataclass
class Response:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> "Response":
        return cls(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})


_ROUTES: list[tuple[str, re.Pattern, Callable[..., Response]]] = []
_REPO = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def route(methods: str, pattern: str) -> Callable:
    def register(function: Callable[..., Response]) -> Callable[..., Response]:
        _ROUTES.extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return register


def answer(hub: "HubState", request: Request) -> Response:
    if request.token and request.user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    for method, pattern, function in _ROUTES:
        if method == request.method and (match := pattern.fullmatch(request.path)):
            return function(hub, request, *(part and unquote(part) for part in match.groups()))
    raise HubError(404, f"The test Hub has no route {request.method} {request.path}")


def find_repo(hub: "HubState", request: Request, kind: str | None, repo_id: str, write: bool = False) -> Repo:
    """The repository, for those who may see it. Nobody else learns whether it exists."""
    repo = hub.repos.get(((kind or "models").rstrip("s/"), repo_id))
    if repo is None or (repo.private and request.user != repo.owner):
        raise HubError(404 if request.user else 401, "Repository not found", "RepoNotFound")
    if write and request.require_user() != repo.owner:
        raise HubError(403, f"You have no right to write to {repo_id}")
    return repo


def repo_url(hub: "HubState", repo: Repo) -> str:
    return f"{hub.endpoint}/{_PREFIXES[repo.type]}{repo.id}"


# ---- repositories


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: "HubState", request: Request) -> Response:
    """The header must be closed and every line of it a list item, a comment, a continuation or `key:`."""
    content = request.json()["content"].lstrip("\ufeff")
    if not content.startswith("---\n"):
        return Response.json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    header, closed, _ = content[4:].partition("\n---")
    wrong = [line for line in header.splitlines() if not re.match(r"( *$| +\S|#|- |-$|\"?[^\s:\"]+\"?:(\s|$))", line)]
    if closed and not wrong:
        return Response.json({"errors": [], "warnings": []})
    message = f"bad line {wrong[0]!r}" if wrong else "the header is not closed"
    return Response.json({"errors": [{"message": f"YAML metadata: {message}"}], "warnings": []}, 400)


@route("POST", "/api/repos/create")
def create_repo(hub: "HubState", request: Request) -> Response:
    user, body = request.require_user(), request.json()
    owner, repo_type = body.get("organization") or user, body.get("type") or "model"
    if owner != user:
        raise HubError(403, f"You don't have the rights to create a {repo_type} under the namespace {owner}")
    repo_id, private = f"{owner}/{body['name']}", body.get("visibility") == "private"
    existing = hub.repos.get((repo_type, repo_id))
    repo = existing or hub.repos.setdefault(
        (repo_type, repo_id), Repo(repo_id, repo_type, private=private, sdk=body.get("sdk"))
    )
    content = {"url": repo_url(hub, repo), "name": repo_id, "id": repo_id}
    if existing:
        return Response.json({"error": f"You already created this {repo_type} repo", **content}, 409)
    return Response.json(content)


@route("GET", f"{_REPO}(?:/revision/([^/]+))?")
def repo_info(hub: "HubState", request: Request, kind: str, repo_id: str, revision: str | None) -> Response:
    repo = find_repo(hub, request, kind, repo_id)
    commit = repo.find_commit(revision or "main")
    siblings = []
    for path in sorted(commit.files):
        entry = repo.entry(commit, path)
        siblings.append({"rfilename": path})
        if request.flag("blobs"):
            siblings[-1].update(size=entry["size"], blobId=entry["oid"])
            if lfs := entry.get("lfs"):
                siblings[-1]["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    info = {"id": repo.id, "author": repo.owner, "sha": commit.id, "private": repo.private, "siblings": siblings}
    info |= {"disabled": False, "gated": False, "downloads": 0, "likes": 0, "tags": []}
    info |= {"createdAt": repo.history(commit.id)[-1].date, "lastModified": commit.date}
    if repo.sdk:
        info["sdk"] = repo.sdk
    # The clients choose a pipeline's task by these two; the rest of a card's header they read from the file.
    card = commit.files.get("README.md", StoredFile(b"")).data.decode(errors="replace")
    header = card[4:].partition("\n---")[0] if card.startswith("---\n") else ""
    info |= dict(re.findall(r"^(pipeline_tag|library_name): *(\S+) *$", header, re.MULTILINE))
    return Response.json(info)


# ---- reading a revision


@route("GET", f"{_REPO}/tree/([^/]+)(?:/(.+))?")
def tree(hub: "HubState", request: Request, kind: str, repo_id: str, revision: str, path: str | None) -> Response:
    repo = find_repo(hub, request, kind, repo_id)
    return Response.json(repo.entries(repo.find_commit(revision), (path or "").strip("/"), request.flag("recursive")))


@route("GET HEAD", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
def resolve(hub: "HubState", request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> Response:
    commit = find_repo(hub, request, kind, repo_id).find_commit(revision)
    stored = commit.files.get(path)
    if stored is None:
        raise HubError(404, "Entry not found", "EntryNotFound", commit.id)
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes"}
    headers["Content-Type"] = "application/octet-stream" if stored.lfs else "text/plain; charset=utf-8"
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}"
    if stored.lfs:
        headers |= {"X-Linked-Etag": f'"{stored.etag}"', "X-Linked-Size": str(len(stored.data))}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if not wanted or request.method == "HEAD":
        return Response(stored.data, 200, headers)
    size = len(stored.data)
    first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
    last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
    if first > last:
        return Response(b"", 416, {**headers, "Content-Range": f"bytes */{size}"})
    return Response(stored.data[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})


@route("GET", f"{_REPO}/commits/([^/]+)")
def commits(hub: "HubState", request: Request, kind: str, repo_id: str, revision: str) -> Response:
    history = find_repo(hub, request, kind, repo_id).history(revision)
    keys = ("id", "title", "message", "date")
    listed = [{**{key: vars(c)[key] for key in keys}, "authors": [{"user": c.author}]} for c in history]
    return Response.json(listed)


# ---- writing


@route("POST", f"{_REPO}/preupload/([^/]+)")
def preupload(hub: "HubState", request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repo, body = find_repo(hub, request, kind, repo_id), request.json()
    request.require_user()
    commit = repo.find_commit(revision)
    files = []
    for item in body["files"]:
        path = item["path"]
        mode = repo.upload_mode(commit, path, item["size"], base64.b64decode(item.get("sample", "")))
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
        if path in commit.files:
            files[-1]["oid"] = commit.files[path].etag
    return Response.json({"files": files})


_GIT = r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects"


@route("POST", f"{_GIT}/batch")
def lfs_batch(hub: "HubState", request: Request, kind: str | None, repo_id: str) -> Response:
    repo = find_repo(hub, request, kind, repo_id)
    request.require_user()
    objects = []
    for item in request.json()["objects"]:
        objects.append({"oid": item["oid"], "size": item["size"]})
        if item["oid"] not in repo.lfs:
            key = secrets.token_hex(8)
            hub.grants[key] = (repo, item["oid"], item["size"])
            upload = f"{hub.endpoint}/lfs/{repo.type}s/{repo.id}/{item['oid']}?signature={key}"
            verify = f"{repo_url(hub, repo)}.git/info/lfs/objects/verify"
            objects[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
    return Response.json({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/.+/([0-9a-f]{64})")
def lfs_put(hub: "HubState", request: Request, oid: str) -> Response:
    """The clients send no token here: the address itself, once handed out, is the right to upload this content."""
    repo, granted, size = hub.grants.get(request.query.get("signature", [""])[0], (None, None, None))
    if granted != oid:
        raise HubError(403, "Request has no valid signature")
    if len(request.body) != size or hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, f"The content sent does not match its checksum {oid}")
    repo.lfs[oid] = request.body
    return Response()


@route("POST", f"{_GIT}/verify")
def lfs_verify(hub: "HubState", request: Request, kind: str | None, repo_id: str) -> Response:
    repo, body = find_repo(hub, request, kind, repo_id), request.json()
    if body["oid"] not in repo.lfs or len(repo.lfs[body["oid"]]) != body["size"]:
        raise HubError(404, f"No LFS object {body['oid']} of {body['size']} bytes")
    return Response.json({})


@route("POST", f"{_REPO}/commit/([^/]+)")
def commit(hub: "HubState", request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repo = find_repo(hub, request, kind, repo_id, write=True)
    files, deleted, header = {}, [], {}
    for line in request.body.splitlines():
        key, value = (item := json.loads(line))["key"], item["value"]
        if key == "header":
            header = value
            continue
        path = value["path"]
        if not path.strip("/") or path.startswith("/") or ".." in path.split("/"):
            raise HubError(400, f"Invalid path in repository: {path!r}")
        if key == "file":
            files[path] = StoredFile(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in repo.lfs:
                raise HubError(400, f"LFS object {value['oid']} of {path} was never uploaded")
            files[path] = StoredFile(repo.lfs[value["oid"]], lfs=value["oid"])
        elif key in ("deletedFile", "deletedFolder"):
            deleted.append(path.rstrip("/") + ("/" if key == "deletedFolder" else ""))
        else:
            raise HubError(400, f"Unknown operation {key!r} in a commit")
    if not header.get("summary"):
        raise HubError(400, "A commit needs a header line with a summary")
    made = repo.commit(
        revision,
        files,
        deleted,
        title=header["summary"],
        message=header.get("description", ""),
        author=request.require_user(),
        parent_commit=header.get("parentCommit"),
    )
    content = {"success": True, "commitOid": made.id, "commitUrl": f"{repo_url(hub, repo)}/commit/{made.id}"}
    return Response.json(content)
