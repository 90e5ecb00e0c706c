"""What the test Hub holds, in memory: repositories, commits, branches, tags, pull requests and LFS objects."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
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


@dataclass
class PullRequest:
    """A discussion; with `base`, the commit that it started from, it is a pull request."""

    num: int
    title: str
    author: str
    date: str
    base: str | None
    status: str
    events: list[dict] = field(default_factory=list)
    merge_commit: str | None = None


class Repo:
    """One repository of a type ("model", "dataset" or "space") and all its history."""

    def __init__(self, repo_id: str, repo_type: str, *, private: bool = False, sdk: str | None = None):
        self.id, self.type, self.private, self.sdk = repo_id, repo_type, private, sdk
        self.owner = repo_id.split("/")[0]
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pulls: dict[int, PullRequest] = {}
        self.pull_heads: dict[int, str] = {}
        self.lfs: dict[str, bytes] = {}
        patterns = _DATASET_PATTERNS if repo_type == "dataset" else _MODEL_PATTERNS
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in patterns)
        first = self._add_commit(
            None, {".gitattributes": StoredFile(attributes.encode())}, "initial commit", "", "system"
        )
        self.branches["main"] = first.id

    # ---- reading

    def find_commit(self, revision: str = "main") -> Commit:
        """The commit that a branch, tag, `refs/...` name or commit id (7 digits or more) stands for."""
        name = re.sub(r"^refs/(heads|tags)/", "", revision)
        if pull := re.fullmatch(r"refs/pr/(\d+)", revision):
            found = self.pull_heads.get(int(pull[1]))
        else:
            found = self.branches.get(name) or self.tags.get(name)
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

    def last_change(self, revision: str, path: str) -> Commit:
        """The newest commit that changed a file, or anything below a folder."""
        for commit in (history := self.history(revision)):
            before = self.commits[commit.parent].files if commit.parent else {}
            touched = {p for p in commit.files.keys() | before.keys() if commit.files.get(p) != before.get(p)}
            if any(p == path or p.startswith(path + "/") for p in touched):
                return commit
        return history[-1]

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
        create_pr: bool,
    ) -> tuple[Commit, PullRequest | None]:
        """All of a commit or nothing of it: every check comes before the first change."""
        head = self.find_commit(revision)
        pull = re.fullmatch(r"refs/pr/(\d+)", revision)
        branch = re.sub(r"^refs/heads/", "", revision)
        if not create_pr and not pull and branch not in self.branches:
            raise HubError(400, f"{revision} is not a branch: commits need a branch or a pull request")
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
        opened = None
        if create_pr:
            opened = self.open_discussion(title, message, author, base=head.id, head=commit.id, status="open")
        elif pull:
            self.pull_heads[int(pull[1])] = commit.id
            data = {"subject": title, "oid": commit.id}
            self.add_event(self.pulls[int(pull[1])], "commit", author, data)
        else:
            self.branches[branch] = commit.id
        return commit, opened

    def create_branch(self, name: str, start: str) -> None:
        if name.startswith("refs/"):
            raise HubError(400, f"Invalid reference for a branch: {name}")
        if name in self.branches:
            raise HubError(409, f"Reference already exists: {name}")
        self.branches[name] = self.find_commit(start).id

    def create_tag(self, name: str, revision: str) -> None:
        target = self.find_commit(revision).id
        if name in self.tags:
            raise HubError(409, f"Tag reference exists already: {name}")
        self.tags[name] = target

    def delete_ref(self, kind: str, name: str) -> None:
        if (kind, name) == ("branch", "main"):
            raise HubError(403, "The branch main cannot be deleted")
        refs = self.branches if kind == "branch" else self.tags
        if name not in refs:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        del refs[name]

    # ---- discussions and pull requests

    def open_discussion(
        self, title: str, text: str, author: str, *, base: str | None, head: str | None, status: str
    ) -> PullRequest:
        num = len(self.pulls) + 1
        self.pulls[num] = PullRequest(num, title, author, self._now(), base, status)
        if head is not None:
            self.pull_heads[num] = head
        self.add_event(self.pulls[num], "comment", author, self.comment_data(text))
        return self.pulls[num]

    def find_pull(self, num: int) -> PullRequest:
        if num not in self.pulls:
            raise HubError(404, f"Discussion {num} does not exist")
        return self.pulls[num]

    def merge(self, num: int, author: str) -> Commit:
        """Apply what a pull request changed since its base; 409 where main changed the same file differently."""
        pull = self.find_pull(num)
        if pull.base is None or pull.status not in ("open", "draft"):
            raise HubError(400, f"Discussion {num} is not an open pull request")
        base, head, main = self.commits[pull.base], self.commits[self.pull_heads[num]], self.find_commit()
        merged = dict(main.files)
        for path in base.files.keys() | head.files.keys():
            theirs, ours = head.files.get(path), main.files.get(path)
            if theirs == base.files.get(path):
                continue
            if ours not in (base.files.get(path), theirs):
                raise HubError(409, f"Merge conflict in {path}")
            if theirs is None:
                merged.pop(path, None)
            else:
                merged[path] = theirs
        commit = self._add_commit(main.id, merged, f"{pull.title} (#{num})", "", author)
        self.branches["main"] = pull.merge_commit = commit.id
        pull.status = "merged"
        self.add_event(pull, "status-change", author, {"status": "merged"})
        return commit

    def add_event(self, pull: PullRequest, kind: str, author: str, data: dict) -> dict:
        event = {"id": f"{pull.num:06x}{len(pull.events):018x}", "type": kind, "createdAt": self._now()}
        pull.events.append({**event, "author": {"name": author}, "data": data})
        return pull.events[-1]

    @staticmethod
    def comment_data(text: str) -> dict:
        return {"edited": False, "hidden": False, "latest": {"raw": text}}

    def _now(self) -> str:
        return next(reversed(self.commits.values())).date
