"""Discussions and pull requests of the test Hub, as the JSON that `huggingface_hub` reads."""

from difflib import unified_diff
from typing import Any

from .store import HubError, PullRequest, Repo


def list_discussions(repo: Repo) -> dict[str, Any]:
    return {
        "discussions": [_summary(repo, pull) for pull in repo.pulls.values()],
        "count": len(repo.pulls),
        "start": 0,
    }


def open_discussion(repo: Repo, user: str, body: dict[str, Any]) -> dict[str, Any]:
    """A discussion, or with `pullRequest` an empty draft that starts from main; commits to `refs/pr/N` fill it."""
    start = repo.find_commit().id if body.get("pullRequest") else None
    status = "draft" if start else "open"
    pull = repo.open_discussion(
        body["title"], body.get("description", ""), user, base=start, head=start, status=status
    )
    return {"num": pull.num, "pullRequest": bool(start)}


def details(repo: Repo, num: int) -> dict[str, Any]:
    pull = repo.find_pull(num)
    content = {**_summary(repo, pull), "events": pull.events}
    if pull.base is not None:
        content["changes"] = {"base": "refs/heads/main", "mergeCommitId": pull.merge_commit}
        content["filesWithConflicts"] = []
        content["diff"] = _diff(repo, pull)
    return content


def change(repo: Repo, user: str, num: int, action: str, body: dict[str, Any]) -> dict[str, Any]:
    """Comment on, close, reopen or merge; everybody may comment, the owner and the author close, the owner merges."""
    pull = repo.find_pull(num)
    if action == "comment":
        event = repo.add_event(pull, "comment", user, repo.comment_data(body["comment"]))
        return {"newMessage": event}
    if user != repo.owner and (action == "merge" or user != pull.author):
        raise HubError(403, f"You have no right to {action} discussion {num} of {repo.id}")
    if body.get("comment"):
        repo.add_event(pull, "comment", user, repo.comment_data(body["comment"]))
    if action == "merge":
        return {"mergeCommitId": repo.merge(num, user).id}
    if action == "status":
        if pull.status == "merged":
            raise HubError(400, f"Pull request {num} is merged already")
        pull.status = body["status"]
        return {"newStatus": repo.add_event(pull, "status-change", user, {"status": pull.status})}
    raise HubError(404, f"The test Hub cannot {action} a discussion")


def _summary(repo: Repo, pull: PullRequest) -> dict[str, Any]:
    return {
        "num": pull.num,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": pull.date,
        "status": pull.status,
        "repo": {"name": repo.id, "type": repo.type},
        "isPullRequest": pull.base is not None,
    }


def _diff(repo: Repo, pull: PullRequest) -> str:
    old, new = repo.commits[pull.base].files, repo.commits[repo.pull_heads[pull.num]].files
    lines = []
    for path in sorted(old.keys() | new.keys()):
        before, after = (
            (stored.pointer if stored.lfs else stored.data).decode(errors="replace").splitlines(keepends=True)
            if (stored := files.get(path))
            else []
            for files in (old, new)
        )
        lines.extend(unified_diff(before, after, f"a/{path}", f"b/{path}"))
    return "".join(lines)
