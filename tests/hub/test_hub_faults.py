"""What huggingface_hub does when transfers fail: which faults it survives, which it reports, and which it misses."""

import pytest

pytestmark = pytest.mark.hub

PRELUDE = """
import json, os, time, urllib.request
import pytest
try:
    import httpx2 as httpx
except ImportError:  # a client below 2
    import httpx
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
api = HfApi()
WEIGHTS = bytes(range(256)) * 8192  # 2 MiB

def fail(method, path_pattern, **how):
    body = json.dumps(dict(method=method, path_pattern=path_pattern, **how)).encode()
    urllib.request.urlopen(urllib.request.Request(os.environ["HF_ENDPOINT"] + "/_test/fail", body)).close()

def upload(name, content=WEIGHTS):
    return api.upload_file(repo_id="tester/net", path_or_fileobj=content, path_in_repo=name)

def read(name, **kwargs):
    with open(hf_hub_download("tester/net", name, **kwargs), "rb") as f:
        return f.read()

def cached_parts():
    return [name for _, _, names in os.walk(os.environ["HF_HOME"]) for name in names if name.endswith(".incomplete")]

api.create_repo("tester/net", exist_ok=True)
"""


def test_uploads_that_the_client_repeats_by_itself(hub, run_client):
    run_client(
        PRELUDE
        + """
fail("PUT", "/lfs/", status=429, retry_after=1)
start = time.monotonic()
upload("limited.bin")
assert time.monotonic() - start >= 2, "the client waits for Retry-After and one second more"
fail("PUT", "/lfs/", status=500, retry_after=0)
upload("broken.bin", WEIGHTS + b"1")
fail("PUT", "/lfs/", status="drop")
upload("dropped.bin", WEIGHTS + b"2")
fail("POST", "/preupload/", status="reset")
upload("reset.bin", WEIGHTS + b"3")
"""
    )
    weights = bytes(range(256)) * 8192
    names = ("limited.bin", "broken.bin", "dropped.bin", "reset.bin")
    files = hub.repo("tester/net").files()
    assert [files[name] for name in names] == [weights, weights + b"1", weights + b"2", weights + b"3"]
    assert [entry.status for entry in hub.requests("PUT")] == [429, 200, 500, 200, 0, 200, 200]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        # The client gives up after its sixth attempt; Retry-After keeps its pauses at one second.
        ('"PUT", "/lfs/", status=500, times=6, retry_after=0', "HfHubHTTPError"),
        ('"PUT", "/lfs/", status="corrupt"', "BadRequestError"),
        ('"POST", "/commit/", status=500', "HfHubHTTPError"),
        ('"POST", "/commit/", status=429, retry_after=0', "HfHubHTTPError"),
        ('"POST", "/commit/", status="reset"', "httpx.NetworkError"),
    ],
)
def test_an_upload_that_fails_changes_nothing_and_a_repeat_finishes(hub, run_client, fault, error):
    run_client(
        PRELUDE
        + f"""
before = api.model_info("tester/net").sha
operations = lambda: [CommitOperationAdd("w.bin", WEIGHTS), CommitOperationAdd("notes.md", b"two files, one commit")]
fail({fault})
with pytest.raises(Exception) as caught:
    api.create_commit("tester/net", operations(), commit_message="both")
assert isinstance(caught.value, {error}) or isinstance(caught.value.__cause__, {error}), repr(caught.value)
assert api.model_info("tester/net").sha == before
assert api.list_repo_files("tester/net") == [".gitattributes"]
api.create_commit("tester/net", operations(), commit_message="both")
"""
    )
    repo = hub.repo("tester/net")
    assert repo.files()["w.bin"] == bytes(range(256)) * 8192
    assert [commit.title for commit in repo.history()] == ["both", "initial commit"]
    uploads = [entry.status for entry in hub.requests("PUT")]
    assert uploads.count(200) == 1, "what arrived before the fault is not sent again"
    assert len(uploads) == (1 if "commit" in fault else 7 if "500" in fault else 2)


def test_downloads(hub, run_client, tmp_path):
    run_client(
        PRELUDE
        + """
api.create_commit("tester/net", [CommitOperationAdd(name, content) for name, content in {
    "large.bin": WEIGHTS * 12, "w.bin": WEIGHTS, "v.bin": WEIGHTS[::-1], "notes.md": b"read me"}.items()],
    commit_message="all")
"""
    )
    hub.log.clear()
    run_client(
        PRELUDE
        + """
# Cut off in the middle: the client goes on, from the last whole block of 10 MB that it had.
fail("GET", "/resolve/.*bin", status="drop", times=2)
assert read("large.bin") == WEIGHTS * 12 and cached_parts() == []
fail("GET", "/resolve/.*bin", status="drop")
assert read("w.bin") == WEIGHTS and cached_parts() == []

# A TCP reset is another exception, which the client does not catch. Nothing half-made stays in the cache.
fail("GET", "/resolve/.*v.bin", status="reset")
with pytest.raises(httpx.ReadError):
    read("v.bin")
assert cached_parts() == []
assert read("v.bin") == WEIGHTS[::-1]

# Rate limits are waited for, a server error at the download is raised at once.
fail("GET", "/resolve/.*notes.md", status=429, retry_after=0)
assert read("notes.md") == b"read me"
fail("GET", "/resolve/.*notes.md", status=500)
with pytest.raises(HfHubHTTPError, match="500"):
    read("notes.md", force_download=True)
assert read("notes.md", force_download=True) == b"read me"

# With a copy in the cache, a failing HEAD request yields that copy, whatever main is by now.
upload("notes.md", b"read me again")
fail("HEAD", "/resolve/.*notes.md", status=500)
assert read("notes.md") == b"read me"
assert read("notes.md") == b"read me again"
""",
        home=tmp_path / "reader",
    )
    assert [entry.status for entry in hub.requests("GET", "/resolve/.*large.bin")] == [0, 0, 206]
    assert [entry.status for entry in hub.requests("GET", "/resolve/.*w.bin")] == [0, 200]
    assert [entry.status for entry in hub.requests("GET", "/resolve/.*v.bin")] == [0, 200]


def test_a_corrupt_download_is_not_noticed_until_it_is_verified(hub, run_client, tmp_path):
    run_client(PRELUDE + 'upload("w.bin")')
    run_client(
        PRELUDE
        + """
fail("GET", "/resolve/.*w.bin", status="corrupt")
wrong = read("w.bin")
assert len(wrong) == len(WEIGHTS) and wrong != WEIGHTS, "the client compares sizes, not checksums"
assert read("w.bin") == wrong, "and keeps what it has"
check = api.verify_repo_checksums("tester/net")
assert [m["path"] for m in check.mismatches] == ["w.bin"], check
assert read("w.bin", force_download=True) == WEIGHTS
assert not api.verify_repo_checksums("tester/net").mismatches
""",
        home=tmp_path / "reader",
    )
    command = ["hf", "cache", "verify", "tester/net"]
    assert run_client(command, home=tmp_path / "reader").returncode == 0


def test_a_snapshot_that_was_interrupted_is_finished_by_a_repeat(hub, run_client, tmp_path):
    run_client(
        PRELUDE
        + """
api.create_commit("tester/net", [CommitOperationAdd(f"{i}.bin", WEIGHTS + b"%d" % i) for i in range(4)],
                  commit_message="four")
"""
    )
    hub.log.clear()
    hub.fail("GET", r"/resolve/.*\.bin", status=500, times=100, after=2)
    load = PRELUDE + 'print(sorted(os.listdir(snapshot_download("tester/net", max_workers=1))))'
    failed = run_client(load, home=tmp_path / "reader", check=False)
    assert failed.returncode != 0
    assert "500" in failed.stderr
    assert [e.status for e in hub.requests("GET", r"\.bin")][:3] == [200, 200, 500]

    hub.clear_faults()
    hub.log.clear()
    done = run_client(load, home=tmp_path / "reader")
    assert done.stdout.strip() == "['.gitattributes', '0.bin', '1.bin', '2.bin', '3.bin']"
    assert len(hub.requests("GET", r"\.bin")) == 2, "what was there already is not fetched again"
