"""Pushes that fail, that are refused, and that must not tell; downloads that arrive damaged."""

import pytest

pytestmark = pytest.mark.hub

PRELUDE = """
import json, os, sys, urllib.request
from pathlib import Path
import pytest, torch
from huggingface_hub import HfApi
from reg4pru import push as push_command
from reg4pru.hub.transfer import TransferError, check_target, fetch_checkpoint, push_folder
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
import time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.05))  # between the tries of the client
api = HfApi()

def fail(method, path_pattern, **how):
    body = json.dumps(dict(method=method, path_pattern=path_pattern, **how)).encode()
    urllib.request.urlopen(urllib.request.Request(os.environ["HF_ENDPOINT"] + "/_test/fail", body)).close()

def make(seed=0, folder="checkpoint"):
    torch.manual_seed(seed)
    Reg4PruForSemanticSegmentation(Reg4PruConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=64, image_size=64, patch_size=8, num_upscale_blocks=1, num_blocks=1)).save_pretrained(folder)
    Reg4PruImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)

def push(*more, name="tester/vessels"):
    push_command.main(["--model_name_or_path", "checkpoint", "--hub_model_id", name, *more])

def stopped(*more, code=1, name="tester/vessels"):
    with pytest.raises(SystemExit) as stop:
        push(*more, name=name)
    if code == 2:  # the parser has said it already
        assert stop.value.code == 2
    else:
        assert isinstance(stop.value.code, str), "a message, which Python prints, with exit code 1"
    return str(stop.value.code)

make()
"""


def test_a_push_that_fails_shows_nothing_half_made_and_a_repeat_finishes(hub, run_client):
    done = run_client(
        PRELUDE
        + """
# The client tries six times. Two files are sent as LFS objects, at once: eleven faults leave one of them six, however
# they fall, and the other so few that they are over before the next fault.
for fault in (dict(method="POST", path_pattern="/repos/create", status=500),
              dict(method="PUT", path_pattern="/lfs/", status=500, times=11, retry_after=0),
              dict(method="PUT", path_pattern="/lfs/", status="corrupt"),
              dict(method="POST", path_pattern="/preupload/", status=429, times=6, retry_after=0),
              dict(method="POST", path_pattern="/commit/", status="reset"),
              dict(method="POST", path_pattern="/commit/", status=503)):
    fail(**fault)
    said = stopped()
    assert "The upload to tester/vessels failed" in said and "Run the same command again" in said, said
    assert len(said.splitlines()) == 2 and "Traceback" not in said, said
    if fault["path_pattern"] == "/repos/create":
        assert "was not created" in said, said
        assert not api.repo_exists("tester/vessels")
    else:
        assert "contains nothing of the upload" in said or "is unchanged, at commit" in said, said
        assert api.list_repo_files("tester/vessels") == [".gitattributes"]
    assert Path("checkpoint/model.safetensors").is_file()
push()
first = api.model_info("tester/vessels").sha

make(seed=1)
fail("POST", "/commit/", status=500)
assert first[:12] in stopped()
assert api.model_info("tester/vessels").sha == first, "the old revision is still the one that is shown"
for name in ("speed.json", "train_results.json"):  # of the old weights
    api.upload_file(repo_id="tester/vessels", path_in_repo=name, path_or_fileobj=b"{}")
push()
assert api.model_info("tester/vessels").sha != first
assert not {"speed.json", "train_results.json"} & set(api.list_repo_files("tester/vessels"))

fail("GET", "/resolve/.*safetensors", status="corrupt")
folder = fetch_checkpoint("tester/vessels")
weights = Path(folder, "model.safetensors").read_bytes()
assert weights == Path("checkpoint/model.safetensors").read_bytes(), "noticed, and fetched again"
fail("GET", "/resolve/.*safetensors", status="corrupt", times=2)
with pytest.raises(TransferError, match="were damaged in transit twice"):
    fetch_checkpoint("tester/vessels", first)
assert fetch_checkpoint("tester/vessels", first).endswith(first)
with pytest.raises(ValueError, match="nor an accessible model"):
    fetch_checkpoint("tester/nothing")

# A download that fails says so, and is finished by a repeat.
make(seed=2)
push()
fail("GET", "/resolve/.*safetensors", status=500)
with pytest.raises(TransferError, match="The download of tester/vessels failed"):
    fetch_checkpoint("tester/vessels")
folder = fetch_checkpoint("tester/vessels")
assert Path(folder, "model.safetensors").read_bytes() == Path("checkpoint/model.safetensors").read_bytes()
""",
        block_modules=(),
        timeout=600,
    )
    repo = hub.repo("tester/vessels")
    assert [commit.title for commit in repo.history()] == [
        *["Upload checkpoint"] * 2,
        *["Upload train_results.json with huggingface_hub", "Upload speed.json with huggingface_hub"],
        *["Upload checkpoint", "initial commit"],
    ]
    assert hub.token not in done.stdout + done.stderr


def test_what_must_not_be_pushed_is_refused(hub, run_client):
    guest = hub.add_user("guest")
    done = run_client(
        PRELUDE
        + f"""
for name, file, content in (("bert", "config.json", b'{{"model_type": "bert"}}'), ("notes", "notes.txt", b"notes"),
                            ("card", "README.md", b"# soon")):
    api.create_repo(f"tester/{{name}}", private=False)
    api.upload_file(repo_id=f"tester/{{name}}", path_or_fileobj=content, path_in_repo=file)
stopped(code=2, name="tester/bert")
stopped(code=2, name="tester/notes")
stopped("--hub_private_repo", code=2, name="tester/card")
stopped(code=2, name="vessels")
push(name="tester/card")
push("--overwrite_repo", name="tester/bert")
assert "config.json" in api.list_repo_files("tester/bert")

api.create_repo("tester/rows", repo_type="dataset")
api.upload_file(repo_id="tester/rows", repo_type="dataset", path_or_fileobj=b"a,b", path_in_repo="rows.csv")
with pytest.raises(ValueError, match="contains something else: the file rows.csv"):
    check_target("tester/rows", "dataset", tag="ours")
# Parquet of somebody else, under the names that ours have.
api.create_repo("tester/others", repo_type="dataset")
others = dict(repo_id="tester/others", repo_type="dataset")
api.upload_file(path_or_fileobj=b"PAR1", path_in_repo="data/train-0.parquet", **others)
for card in (None, b"---\\ntags: [theirs]\\n---", b"# No header"):
    if card:
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", **others)
    with pytest.raises(ValueError, match="a data set whose card has no tag 'ours'"):
        check_target("tester/others", "dataset", tag="ours")
check_target("tester/others", "dataset", tag="theirs", overwrite=True)

# Private, and it stays so when it is pushed to again without the flag.
push("--hub_private_repo", name="tester/secret")
make(seed=2)
push(name="tester/secret")
assert api.model_info("tester/secret").private
with pytest.raises(ValueError, match="nor an accessible model"):
    os.environ.pop("HF_TOKEN"), fetch_checkpoint("tester/secret")
os.environ["HF_TOKEN"] = {guest!r}
said = stopped(name="tester/card")
assert "403" in said and "is unchanged, at commit" in said, said
os.environ["HF_TOKEN"] = {hub.token!r}

# A token that got into a file, ours or any other, stays here.
for token in ({hub.token!r}, "hf_" + "a" * 34):
    Path("train_results.json").write_text(json.dumps({{"provenance": {{"command": token}}, "arguments": {{}},
        "total_steps": 1, "best_validation_ap": None}} | {{"note": token}}))
    Path("leak").mkdir(exist_ok=True)
    Path("leak/notes.txt").write_text(f"token: {{token}}")
    with pytest.raises(ValueError, match="contains an access token") as caught:
        push_folder(Path("leak"), "tester/leak", repo_type="model", commit_message="leak")
    assert token not in str(caught.value)
assert not api.repo_exists("tester/leak")
""",
        block_modules=(),
        timeout=600,
    )
    assert "contains something else: a model of type 'bert'" in done.stderr
    assert "contains something else: the file notes.txt" in done.stderr
    assert "exists and is public" in done.stderr
    assert "must be 'user/name'" in done.stderr
    assert hub.token not in done.stdout + done.stderr
    assert hub.repo("tester/bert").history()[0].title == "Upload checkpoint"
    assert hub.repo("tester/notes").files().keys() == {".gitattributes", "notes.txt"}
    assert hub.repo("tester/bert").files(hub.repo("tester/bert").history()[1].id)["config.json"]


def test_the_commands_end_with_a_message_and_not_with_a_traceback(hub, run_client, tmp_path):
    hub.fail(times=1000)
    prepare = ["reg4pru", "prepare", "--fives_dir", tmp_path, "--push_to_hub", "--hub_dataset_id"]
    done = run_client([*prepare, "tester/fives"], block_modules=(), check=False, timeout=600)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("The Hub could not be reached for tester/fives")
    assert "Traceback" not in done.stderr
