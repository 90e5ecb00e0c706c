"""What the test Hub holds, in memory: repositories, commits and LFS objects."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatch

MAX_REGULAR_SIZE = 10 * 1024 * 1024  # the real Hub refuses larger files outside LFS

_MODEL_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.onnx", "*.h5", "*.npz", "*.npy", "*.pkl")
_MODEL_PATTERNS += ("*.parquet", "*.arrow", "*.zip", "*.7z", "*.tar", "*.tar.*", "*tfevents*")
_DATASET_PATTERNS = (*_MODEL_PATTERNS, "*.png", "*.jpg", "*.jpeg", "*.tiff", "*.webp")
_EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)


class HubError(Exception):
    """An answer that is an error: HTTP status, message, and the Hub's `X-Error-Code` where it has one."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    """One version of a file. `lfs` is the sha256 of the content when the repository holds only a pointer to it."""

    data: bytes
    lfs: str | None = None

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.lfs}\nsize {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        return git_oid(self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.lfs or self.oid


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    files: dict[str, StoredFile]
    title: str
    message: str
    author: str
    date: str


class Repo:
    """One repository of a type ("model", "dataset" or "space") and all its history."""

    def __init__(self, repo_id: str, repo_type: str, *, private: bool = False, sdk: str | None = None):
        self.id, self.type, self.private, self.sdk = repo_id, repo_type, private, sdk
        self.owner = repo_id.split("/")[0]
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.lfs: dict[str, bytes] = {}
        patterns = _DATASET_PATTERNS if repo_type == "dataset" else _MODEL_PATTERNS
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in patterns)
        first = self._add_commit(
            None, {".gitattributes": StoredFile(attributes.encode())}, "initial commit", "", "system"
        )
        self.branches["main"] = first.id

    # ---- reading

    def find_commit(self, revision: str = "main") -> Commit:
        """The commit of a branch, or of a commit id (7 digits or more)."""
        found = self.branches.get(revision)
        if found is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = next((commit for commit in self.commits if commit.startswith(revision)), None)
        if found is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Every file of a revision, path to content: what a test compares with."""
        return {path: stored.data for path, stored in self.find_commit(revision).files.items()}

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits that lead to a revision, newest first."""
        commits, current = [], self.find_commit(revision)
        while True:
            commits.append(current)
            if current.parent is None:
                return commits
            current = self.commits[current.parent]

    def entries(self, commit: Commit, folder: str, recursive: bool) -> list[dict]:
        """Files and folders below a folder, in the form of the tree and paths-info routes."""
        prefix = folder + "/" if folder else ""
        found: dict[str, dict] = {}
        for path in sorted(p for p in commit.files if p.startswith(prefix)):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                parent = prefix + "/".join(parts[:depth])
                found.setdefault(parent, self.entry(commit, parent))
            if recursive or len(parts) == 1:
                found[path] = self.entry(commit, path)
        if folder and not found:
            raise HubError(404, f"{folder} does not exist on this revision", "EntryNotFound", commit.id)
        return list(found.values())

    def entry(self, commit: Commit, path: str) -> dict | None:
        stored = commit.files.get(path)
        if stored is None:
            below = sorted((p, f.oid) for p, f in commit.files.items() if p.startswith(path + "/"))
            oid = hashlib.sha1(repr(below).encode()).hexdigest()
            return {"type": "directory", "oid": oid, "size": 0, "path": path} if below else None
        entry = {"type": "file", "oid": stored.oid, "size": len(stored.data), "path": path}
        if stored.lfs:
            entry["lfs"] = {"oid": stored.lfs, "size": len(stored.data), "pointerSize": len(stored.pointer)}
        return entry

    # ---- writing

    def upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> str:
        """ "lfs" for what .gitattributes names, for large and for binary files; "regular" for the rest."""
        attributes = commit.files.get(".gitattributes", StoredFile(b"")).data.decode()
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line.split()]
        named = any(fnmatch(path if "/" in pattern else path.rsplit("/", 1)[-1], pattern) for pattern in patterns)
        return "lfs" if named or size > MAX_REGULAR_SIZE or b"\0" in sample else "regular"

    def _add_commit(self, parent: str | None, files: dict, title: str, message: str, author: str) -> Commit:
        # Ids must differ between equal contents and be the same in every run: time stands still but for the count.
        date = (_EPOCH + timedelta(minutes=len(self.commits))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        tree = {path: stored.oid for path, stored in files.items()}
        key = json.dumps([self.type, self.id, parent, tree, title, message, author, date], sort_keys=True)
        commit = Commit(hashlib.sha1(key.encode()).hexdigest(), parent, files, title, message, author, date)
        self.commits[commit.id] = commit
        return commit

    def commit(
        self,
        revision: str,
        files: dict[str, StoredFile],
        deleted: Iterable[str],
        *,
        title: str,
        message: str,
        author: str,
        parent_commit: str | None,
    ) -> Commit:
        """All of a commit or nothing of it: every check comes before the first change."""
        head = self.find_commit(revision)
        if revision not in self.branches:
            raise HubError(400, f"{revision} is not a branch: commits need a branch")
        if parent_commit is not None and not head.id.startswith(parent_commit):
            raise HubError(412, f"A commit has happened since {parent_commit}: {revision} is at {head.id}")
        kept = dict(head.files)
        for path in deleted:
            gone = [p for p in kept if p == path or (path.endswith("/") and p.startswith(path))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound", head.id)
            for p in gone:
                del kept[p]
        commit = self._add_commit(head.id, {**kept, **files}, title, message, author)
        self.branches[revision] = commit.id
        return commit
