"""huggingface_hub and the `hf` command against the test Hub."""

import hashlib

import huggingface_hub
import pytest
from packaging.version import Version

pytestmark = pytest.mark.hub


def test_folder_with_large_files_goes_up_and_comes_down(hub, run_client, tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    weights, large, notes = bytes(range(256)) * 40, b"text\n" * 2_200_000, b"caf\xc3\xa9\n"
    (folder / "model.safetensors").write_bytes(weights)  # large by .gitattributes
    (folder / "sub" / "large.txt").write_bytes(large)  # large by size: 11 MB
    (folder / "sub" / "größe 1.md").write_bytes(notes)
    (folder / "empty.bin").write_bytes(b"")
    (folder / "junk.pyc").write_bytes(b"junk")
    (folder / ".gitignore").write_bytes(b"*.pyc\n")
    run_client(
        f"""
import os
from huggingface_hub import HfApi, snapshot_download
api = HfApi()
assert api.whoami()["name"] == "tester"
url = api.create_repo("tester/net", private=False)
assert (url.repo_id, url.repo_type, url.endpoint) == ("tester/net", "model", os.environ["HF_ENDPOINT"])
info = api.upload_folder(repo_id="tester/net", folder_path={str(folder)!r}, commit_message="all")
assert info.oid == api.model_info("tester/net").sha
again = api.upload_folder(repo_id="tester/net", folder_path={str(folder)!r}, ignore_patterns="*.pyc")
assert again.oid == info.oid, "nothing changed, so there must be no new commit"

tree = {{e.path: e for e in api.list_repo_tree("tester/net", recursive=True, expand=True)}}
assert tree["model.safetensors"].lfs.size == 10240 and tree["sub/large.txt"].lfs.size == 11_000_000
assert tree["sub/größe 1.md"].lfs is None and tree["sub/größe 1.md"].last_commit.title == "all"
assert tree[".gitattributes"].last_commit.title == "initial commit"
assert [e.path for e in api.list_repo_tree("tester/net", "sub")] == ["sub/größe 1.md", "sub/large.txt"]
info = api.get_paths_info("tester/net", ["sub", "model.safetensors", "none"], expand=True)
assert [type(i).__name__ for i in info] == ["RepoFolder", "RepoFile"], info
siblings = {{s.rfilename: s for s in api.model_info("tester/net", files_metadata=True).siblings}}
assert siblings["model.safetensors"].lfs.sha256 == tree["model.safetensors"].lfs.sha256

local = snapshot_download("tester/net")
with open(os.path.join(local, "sub", "größe 1.md"), "rb") as f:
    assert f.read() == {notes!r}
blob = os.path.realpath(os.path.join(local, "model.safetensors"))
assert os.path.basename(blob) == tree["model.safetensors"].lfs.sha256
assert os.path.basename(os.path.realpath(os.path.join(local, "sub", "größe 1.md"))) == tree["sub/größe 1.md"].blob_id
"""
    )
    repo = hub.repo("tester/net")
    files = repo.files()
    assert files.pop(".gitattributes").startswith(b"*.safetensors filter=lfs")
    assert files == {
        "model.safetensors": weights,
        "sub/large.txt": large,
        "sub/größe 1.md": notes,
        "empty.bin": b"",
        ".gitignore": b"*.pyc\n",
    }
    assert set(repo.lfs) == {hashlib.sha256(weights).hexdigest(), hashlib.sha256(large).hexdigest()}
    assert [commit.title for commit in repo.history()] == ["all", "initial commit"]
    uploads = hub.requests("PUT", "^/lfs/")
    assert len(uploads) == 2
    assert {entry.user for entry in uploads} == {None}, "the address is signed, no token belongs there"
    assert hub.token not in repr(hub.log)
    assert "signature" not in repr(hub.log)


def test_revisions_branches_tags_and_parent_commit(hub, run_client):
    run_client(
        """
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
api = HfApi()
repo = api.create_repo("data", repo_type="dataset").repo_id
assert repo == "tester/data"
with pytest.raises(HfHubHTTPError, match="409"):
    api.create_repo("data", repo_type="dataset")
assert api.create_repo("data", repo_type="dataset", exist_ok=True).repo_id == repo
args = dict(repo_id=repo, repo_type="dataset")
def read(name, **kwargs):
    with open(hf_hub_download(filename=name, **args, **kwargs), "rb") as f:
        return f.read()

first = api.upload_file(path_or_fileobj=b"one", path_in_repo="a.txt", **args)
api.create_tag(tag="v1", **args)
api.create_branch(branch="try/out", **args)
second = api.upload_file(path_or_fileobj=b"two", path_in_repo="a.txt", **args)
api.upload_file(path_or_fileobj=b"three", path_in_repo="a.txt", revision="try/out", **args)
assert [read("a.txt", revision=r) for r in (None, "v1", "try/out", first.oid)] == [b"two", b"one", b"three", b"one"]
for call in (api.create_tag, api.create_branch):
    name = {"tag": "v1"} if call == api.create_tag else {"branch": "try/out"}
    with pytest.raises(HfHubHTTPError, match="409"):
        call(**name, **args)
    call(**name, exist_ok=True, **args)

with pytest.raises(HfHubHTTPError, match="412"):
    api.upload_file(path_or_fileobj=b"lost", path_in_repo="a.txt", parent_commit=first.oid, **args)
api.create_commit(**args, parent_commit=second.oid, commit_message="many", operations=[
    CommitOperationAdd("b.parquet", b"PAR1" * 9), CommitOperationAdd("dir/c.txt", b"c"),
    CommitOperationDelete("a.txt")])
api.create_commit(**args, commit_message="copy", operations=[
    CommitOperationCopy("b.parquet", "d.parquet"), CommitOperationDelete("dir/")])
with pytest.raises(EntryNotFoundError):
    api.create_commit(**args, commit_message="x", operations=[CommitOperationDelete("a.txt")])
titles = [c.title for c in api.list_repo_commits(**args)]
assert titles[:2] == ["copy", "many"] and titles[-1] == "initial commit" and len(titles) == 5

refs = api.list_repo_refs(**args)
assert {b.name for b in refs.branches} == {"main", "try/out"} and refs.tags[0].target_commit == first.oid
with pytest.raises(RevisionNotFoundError):
    read("a.txt", revision="v2")
with pytest.raises(EntryNotFoundError):
    read("none.txt")
with pytest.raises(RepositoryNotFoundError):
    api.model_info(repo)
api.delete_tag(tag="v1", **args)
api.delete_branch(branch="try/out", **args)
with pytest.raises(RevisionNotFoundError):
    api.delete_tag(tag="v1", **args)
with pytest.raises(HfHubHTTPError, match="403"):
    api.delete_branch(branch="main", **args)
"""
    )
    repo = hub.repo("tester/data", "dataset")
    assert repo.files().keys() == {".gitattributes", "b.parquet", "d.parquet"}
    assert repo.files()["d.parquet"] == b"PAR1" * 9
    assert repo.branches.keys() == {"main"}
    assert repo.tags == {}
    with pytest.raises(ValueError, match="status is 'late'; allowed are"):
        hub.fail("GET", status="late")


def test_pull_requests(hub, run_client):
    guest = hub.add_user("guest")
    run_client(
        f"""
import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
owner, guest = HfApi(), HfApi(token={guest!r})
owner.create_repo("tester/net")
owner.upload_file(repo_id="tester/net", path_or_fileobj=b"one\\n", path_in_repo="a.txt")
with pytest.raises(HfHubHTTPError, match="403"):
    guest.upload_file(repo_id="tester/net", path_or_fileobj=b"mine\\n", path_in_repo="a.txt")
offer = guest.upload_file(repo_id="tester/net", path_or_fileobj=b"two\\n", path_in_repo="a.txt", create_pr=True)
assert (offer.pr_num, offer.pr_revision) == (1, "refs/pr/1")
guest.upload_file(repo_id="tester/net", path_or_fileobj=b"W" * 9, path_in_repo="w.bin", revision="refs/pr/1")
other = guest.upload_file(repo_id="tester/net", path_or_fileobj=b"else\\n", path_in_repo="a.txt", create_pr=True)
draft = owner.create_pull_request("tester/net", title="a draft")
assert draft.status == "draft" and draft.num == 3

details = owner.get_discussion_details("tester/net", 1)
assert details.is_pull_request and details.author == "guest" and details.status == "open"
assert "-one\\n+two\\n" in details.diff and [e.type for e in details.events] == ["comment", "commit"]
assert [d.num for d in owner.get_repo_discussions("tester/net")] == [1, 2, 3]
refs = owner.list_repo_refs("tester/net", include_pull_requests=True)
assert [pull.name for pull in refs.pull_requests] == ["1", "2", "3"]
local = snapshot_download("tester/net", revision="refs/pr/1")
with open(local + "/w.bin", "rb") as f:
    assert f.read() == b"W" * 9

with pytest.raises(HfHubHTTPError, match="403"):
    guest.merge_pull_request("tester/net", 1)
owner.comment_discussion("tester/net", 1, "thank you")
owner.merge_pull_request("tester/net", 1)
merged = owner.get_discussion_details("tester/net", 1)
assert merged.status == "merged" and merged.merge_commit_oid == owner.model_info("tester/net").sha
with pytest.raises(HfHubHTTPError, match="409"):
    owner.merge_pull_request("tester/net", 2)
assert guest.change_discussion_status("tester/net", 2, "closed").new_status == "closed"
"""
    )
    files = hub.repo("tester/net").files()
    assert (files["a.txt"], files["w.bin"]) == (b"two\n", b"W" * 9)


def test_private_repositories_and_foreign_namespaces(hub, run_client, tmp_path):
    guest = hub.add_user("guest")
    run_client(
        f"""
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
owner, guest, nobody = HfApi(), HfApi(token={guest!r}), HfApi(token=False)
owner.create_repo("tester/secret", private=True)
owner.upload_file(repo_id="tester/secret", path_or_fileobj=b"s", path_in_repo="a.txt")
assert owner.model_info("tester/secret").private
for other in (guest, nobody):
    for call in (other.model_info, other.list_repo_commits, other.list_repo_refs):
        with pytest.raises(RepositoryNotFoundError):
            call("tester/secret")
    with pytest.raises(RepositoryNotFoundError):
        other.hf_hub_download("tester/secret", "a.txt", cache_dir={str(tmp_path / "other")!r})
    with pytest.raises(RepositoryNotFoundError):
        other.upload_file(repo_id="tester/secret", path_or_fileobj=b"x", path_in_repo="b.txt")
with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
    guest.create_repo("tester/mine")
with pytest.raises(HfHubHTTPError, match="Invalid user token|Invalid credentials"):
    HfApi(token="hf_wrong").whoami()
with pytest.raises(HfHubHTTPError, match="403"):
    owner.create_repo("tester/open")
    guest.delete_repo("tester/open")
with pytest.raises(HfHubHTTPError, match="401"):
    nobody.upload_file(repo_id="tester/open", path_or_fileobj=b"x", path_in_repo="b.txt")
owner.update_repo_settings("tester/secret", visibility="public")
assert not guest.model_info("tester/secret").private
owner.delete_repo("tester/open")
owner.delete_repo("tester/open", missing_ok=True)
"""
    )
    assert hub.has_repo("tester/secret")
    assert not hub.has_repo("tester/open")
    assert not hub.has_repo("tester/mine")
    assert hub.repo("tester/secret").files().keys() == {".gitattributes", "a.txt"}
    assert guest not in repr(hub.log)


@pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2.2"), reason="this client validates cards at huggingface.co only"
)
def test_cards(hub, run_client):
    run_client(
        """
import pytest
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, metadata_update
api = HfApi()
api.create_repo("tester/net")
scores = EvalResult(task_type="image-segmentation", dataset_type="tester/d", dataset_name="d",
                    metric_type="dice", metric_value=0.5)
data = ModelCardData(license="mit", library_name="transformers", pipeline_tag="image-segmentation",
                     tags=["vessels"], model_name="net", eval_results=[scores])
ModelCard(f"---\\n{data.to_yaml()}\\n---\\n# Net\\n").push_to_hub("tester/net")
assert ModelCard.load("tester/net").data.eval_results[0].metric_value == 0.5
metadata_update("tester/net", {"datasets": ["tester/d"]})
card = ModelCard.load("tester/net")
assert card.data.datasets == ["tester/d"] and card.data.license == "mit" and card.text.strip() == "# Net"
info = api.model_info("tester/net")
assert (info.pipeline_tag, info.library_name) == ("image-segmentation", "transformers")
with pytest.raises(ValueError, match="YAML metadata: bad line"):
    api.upload_file(repo_id="tester/net", path_in_repo="README.md", path_or_fileobj=b"---\\nlicense mit\\n---\\n")
"""
    )
    validations = hub.requests("POST", "/api/validate-yaml")
    assert [entry.status for entry in validations].count(400) == 1
    assert validations[0].user is None, "cards are validated without a token"


def test_command_line(hub, run_client, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(b"W" * 1000)
    (folder / "config.json").write_bytes(b"{}")
    done = run_client(["hf", "upload", "tester/net", folder, "--private", "--commit-message", "by hand"])
    run_client(["hf", "download", "tester/net", "--local-dir", tmp_path / "down"])
    refused = run_client(["hf", "download", "tester/net"], home=tmp_path / "other", token=None, check=False)

    repo = hub.repo("tester/net")
    assert repo.private
    assert repo.history()[0].title == "by hand"
    assert (tmp_path / "down" / "w.safetensors").read_bytes() == b"W" * 1000
    assert refused.returncode != 0
    assert "not found" in refused.stderr.lower()
    assert hub.token not in done.stdout + done.stderr


def test_our_packages_are_hidden_from_clients_only_on_request(run_client, tmp_path):
    code = "import modeling_reg4pru, sys; print(modeling_reg4pru.__name__)"
    hidden = run_client(code, check=False)
    assert "ModuleNotFoundError: No module named 'modeling_reg4pru'" in hidden.stderr
    child = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import datasets_fives']))"
    assert run_client(child, check=False).returncode == 1
    seen = run_client("import importlib.util as u; print(u.find_spec('modeling_reg4pru') is None)", block_modules=())
    assert seen.stdout == "False\n"


def test_long_lists_come_in_pages(hub, run_client):
    hub.state.page_size = 3
    run_client(
        """
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo("tester/net")
names = [f"{i}.txt" for i in range(7)]
api.create_commit("tester/net", [CommitOperationAdd(name, name.encode()) for name in names], commit_message="seven")
assert [e.path for e in api.list_repo_tree("tester/net")] == [".gitattributes", *names]
for i in range(3):
    api.upload_file(repo_id="tester/net", path_or_fileobj=b"%d" % i, path_in_repo="0.txt")
assert len(api.list_repo_commits("tester/net")) == 5
"""
    )
    assert len(hub.requests("GET", "/tree/")) == 3
    assert len(hub.requests("GET", "/commits/")) == 2
