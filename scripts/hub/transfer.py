"""Uploads and downloads: all in one commit, nothing of others overwritten, no tokens sent, checksums compared."""

import json
import logging
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import DatasetCard, HfApi, constants, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..common.data_overlap import FILE
from ..common.former_names import FORMER_TAGS, FORMER_TRAINING_IMAGES

logger = logging.getLogger(__name__)

# Files that a repository has from its first commit on.
_INITIAL_FILES = (".gitattributes", "README.md")
# Files that belong to a checkpoint, data set or Space of ours: a push without one of them deletes it on the Hub.
OUR_FILES = {
    "model": (
        FILE,
        FORMER_TRAINING_IMAGES,
        "train_results.json",
        "speed.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "*.py",
        ".eval_results/*",
        "results/*",
    ),
    "dataset": ("data/*.parquet",),
    "space": ("*.py", "reg4pru/*", "requirements.txt"),
}
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


class TransferError(Exception):
    """A failed transfer; the message says what happened and what to do."""


def check_target(
    repo_id: str, repo_type: str, *, private: bool = False, overwrite: bool = False, tag: str | None = None
) -> str | None:
    """
    Refuse a repository that must not be pushed to. To be called before hours of work as well.

    Args:
        repo_id (`str`): `"user/name"`.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        private (`bool`, *optional*, defaults to `False`): Whether the repository has to be private.
        overwrite (`bool`, *optional*, defaults to `False`): Allow a repository that contains something else.
        tag (`str`, *optional*): A data set is ours if its card has this tag.

    Returns:
        `str` or `None`: The latest commit; `None` if the repository does not exist yet.

    Raises:
        `ValueError`: If the id is not valid, the repository contains something that is not ours (a model: a
            `config.json` with another `model_type`, or files without any `config.json`; a data set: a card without
            `tag`, or files other than a card and Parquet; a Space: files without our app), or it is public and has to
            be private.
        [`TransferError`]: If the Hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"The repository id is {repo_id!r}: {error}") from None
    if "/" not in repo_id:
        raise ValueError(f"The repository id is {repo_id!r}: it must be 'user/name'.")
    try:
        info = HfApi().repo_info(repo_id, repo_type=repo_type)
        files = [file.rfilename for file in info.siblings]
        other = None if overwrite else _something_else(repo_id, repo_type, info.sha, files, tag)
    except RepositoryNotFoundError:
        return None
    except (HTTPError, OSError) as error:
        raise TransferError(f"The Hub could not be reached for {repo_id}: {_first_line(error)}") from None
    if other:
        raise ValueError(
            f"The {repo_type} repository {repo_id} contains something else: {other}. Choose another name, or pass "
            "--overwrite_repo to replace its files (they stay in its history)."
        )
    if private and not info.private:
        raise ValueError(f"{repo_id} exists and is public, but should be private: change that on the Hub first.")
    return info.sha


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    repo_type: str,
    commit_message: str,
    private: bool = False,
    overwrite: bool = False,
    ignore: tuple[str, ...] = (),
    tag: str | None = None,
) -> str:
    """
    Upload a folder as one commit, so that no revision ever contains half of it, and compare checksums.

    Args:
        folder (`Path`): The folder to upload.
        repo_id (`str`): `"user/name"`; created if it does not exist.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        commit_message (`str`): Title of the commit.
        private (`bool`, *optional*, defaults to `False`): Make a new repository private; an existing one stays as it
            is.
        overwrite (`bool`, *optional*, defaults to `False`): Replace whatever the repository contains.
        ignore (`tuple[str, ...]`, *optional*): Files of the folder that are not uploaded.
        tag (`str`, *optional*): See [`check_target`].

    Returns:
        `str`: The commit.

    Raises:
        `ValueError`: See [`check_target`]; also if a file contains something that looks like an access token.
        [`TransferError`]: If the transfer failed.
    """
    _refuse_tokens(folder)
    before = check_target(repo_id, repo_type, private=private, overwrite=overwrite, tag=tag)
    api = HfApi()
    try:
        if before is None:
            sdk = "gradio" if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message=commit_message,
            parent_commit=before,  # a push by somebody else in the meantime is not overwritten
            ignore_patterns=list(ignore),
            delete_patterns=["*"] if overwrite else list(OUR_FILES[repo_type]),
        ).oid
        check = api.verify_repo_checksums(repo_id, repo_type=repo_type, revision=commit, local_dir=folder)
    # RuntimeError: raised by the client for a file that could not be uploaded.
    except (HTTPError, OSError, RuntimeError) as error:
        raise TransferError(
            f"The upload to {repo_id} failed: {_first_line(error)}\n{_state_after(repo_id, repo_type, before)} "
            "Run the same command again: files that have arrived are not sent twice. Nothing was changed here."
        ) from None
    wrong = [mismatch["path"] for mismatch in check.mismatches]
    wrong += [path for path in check.extra_paths if path not in ignore]
    wrong += [path for path in check.missing_paths if _is_ours(path, repo_type)]
    if wrong:
        raise TransferError(f"{repo_id} at {commit} differs from {folder} in {', '.join(sorted(wrong))}. Push again.")
    return commit


def fetch_checkpoint(model_name_or_path: str, revision: str | None = None) -> str:
    """
    The folder of a checkpoint, downloaded if it is on the Hub. Checksums are compared, since the client compares sizes
    only; a file that differs is downloaded once more.

    Args:
        model_name_or_path (`str`): A folder, which is returned unchanged, or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit.

    Raises:
        `ValueError`: If there is no such checkpoint.
        [`TransferError`]: If the download failed.
    """
    if Path(model_name_or_path).is_dir():
        return model_name_or_path
    try:
        folder = snapshot_download(model_name_or_path, revision=revision)
        if constants.HF_HUB_OFFLINE:
            return folder
        for path in _mismatches(model_name_or_path, folder):
            logger.warning("%s of %s does not match its checksum and is downloaded again.", path, model_name_or_path)
            hf_hub_download(model_name_or_path, path, revision=Path(folder).name, force_download=True)
        broken = _mismatches(model_name_or_path, folder)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{model_name_or_path!r} is neither a local folder nor an accessible model on the Hub: "
            f"{_first_line(error)}"
        ) from None
    except PermissionError as error:
        raise TransferError(
            f"The download of {model_name_or_path} failed: {_first_line(error)}\n"
            f"Set HF_HOME, which is {constants.HF_HOME}, to a folder that can be written to."
        ) from None
    except (HTTPError, OSError) as error:
        raise TransferError(
            f"The download of {model_name_or_path} failed: {_first_line(error)}\n"
            "Run the same command again: complete files are kept."
        ) from None
    if broken:
        raise TransferError(
            f"{', '.join(broken)} of {model_name_or_path} were damaged in transit twice. Try again later."
        )
    return folder


def _mismatches(repo_id: str, folder: str) -> list[str]:
    # The folder of a snapshot has the name of its commit.
    check = HfApi().verify_repo_checksums(repo_id, revision=Path(folder).name)
    return [mismatch["path"] for mismatch in check.mismatches]


def has_tag(card: str | Path, tag: str | None) -> bool:
    """Whether the card of a data set, a file, has this tag, maybe under its former name."""
    return not {tag, FORMER_TAGS.get(tag, tag)}.isdisjoint(DatasetCard.load(card).data.get("tags") or [])


def _something_else(repo_id: str, repo_type: str, commit: str, files: list[str], tag: str | None) -> str | None:
    """What a repository contains that is not ours; `None` if there is nothing."""
    if set(files) <= set(_INITIAL_FILES):
        return None
    if repo_type == "dataset":
        foreign = [file for file in files if file not in _INITIAL_FILES and not _is_ours(file, repo_type)]
        if foreign:
            return f"the file {foreign[0]}"
        card = (
            hf_hub_download(repo_id, "README.md", repo_type=repo_type, revision=commit)
            if "README.md" in files
            else None
        )
        return None if card is not None and has_tag(card, tag) else f"a data set whose card has no tag {tag!r}"
    if repo_type == "space":
        return None if any(file.startswith("reg4pru/app/") for file in files) else "files of another app"
    if "config.json" not in files:
        return f"the file {next(file for file in files if file not in _INITIAL_FILES)}, and no config.json"
    config = json.loads(Path(hf_hub_download(repo_id, "config.json", revision=commit)).read_text(encoding="utf-8"))
    model_type = config.get("model_type") if isinstance(config, dict) else None
    return None if model_type == "reg4pru" else f"a model of type {model_type!r}"


def _is_ours(path: str, repo_type: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in OUR_FILES[repo_type])


def _state_after(repo_id: str, repo_type: str, before: str | None) -> str:
    """What the repository contains after a failure, as far as it can be known."""
    try:
        now = HfApi().repo_info(repo_id, repo_type=repo_type).sha
    except RepositoryNotFoundError:
        return f"The repository {repo_id} was not created."
    except (HTTPError, OSError):
        return f"The state of {repo_id} is not known: it has either the old revision or the complete new one."
    if before is None:
        return f"The repository {repo_id} exists, but contains nothing of the upload."
    if now == before:
        return f"{repo_id} is unchanged, at commit {before[:12]}."
    return f"{repo_id} is at another commit by now, {now[:12]}."


def _refuse_tokens(folder: Path) -> None:
    token = (get_token() or "").encode()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in (".safetensors", ".parquet", ".png"):
            continue
        content = path.read_bytes()
        if _TOKEN.search(content) or (len(token) > 8 and token in content):
            raise ValueError(f"{path} contains an access token of the Hub: remove it. Nothing was uploaded.")


def _first_line(error: BaseException) -> str:
    """The first line of an error that is not blank, and that of its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = f" ({_first_line(error.__cause__)})" if error.__cause__ is not None else ""
    return (lines[0] if lines else type(error).__name__) + cause


def copy_files(paths: list[Path], folder: Path) -> None:
    """Copy those of the files that exist into a folder."""
    for path in paths:
        if path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)
