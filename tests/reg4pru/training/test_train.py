"""Training from end to end, with a tiny model: what it writes, what it refuses, and that resuming changes nothing."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from reg4pru import train
from reg4pru.common.provenance import provenance
from reg4pru.training.arguments import PruningScheduleArguments
from reg4pru.training.schedule import keep_rates_of_step

from ...variants import VARIANTS

SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = {
    **SIZES,
    "image_size": 32,
    "patch_size": 8,
    "num_upscale_blocks": 1,
    "num_blocks": 1,
    "num_register_tokens": 1,
    "train_num_points": 64,
    "pruning_layers": [0, 1],
    "reactivation_layer": 2,
    "routing_window": [0, 2],
    "token_multiple": 2,
    "masked_attention": False,
}
FLAGS = ["--working_size", "32", "--synthetic_counts", "6", "2", "1", "--per_device_train_batch_size", "2",
         "--learning_rate", "1e-3", "--head_warmup_steps", "1", "--backbone_warmup_steps", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _fresh_start(cache, monkeypatch):
    """The images are drawn once; Accelerate's state is that of a new process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def refusal(run, capsys):
    """What a run that is refused says, in one line, with exit status 2."""

    def refused(name: str, *more: object, config: dict | None = None) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(name, *more, config=config)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return refused


@pytest.fixture
def run(tmp_path):
    """Trains in a folder of that name with more flags."""

    def start(name: str, *more: object, config: dict | None = None):
        overrides = [f"{field}={json.dumps(value)}" for field, value in (CONFIG if config is None else config).items()]
        folder = tmp_path / name
        AcceleratorState._reset_state(True)
        train.main(["--output_dir", str(folder), *FLAGS, *map(str, more), "--config_overrides", *overrides])
        return folder

    return start


def weights(folder, name="last"):
    return load_file(folder / name / "model.safetensors")


def log(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, atol):
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], rtol=0, atol=atol) for n in one)


def losses(folder):
    return [line["loss"] for line in log(folder) if "loss" in line]


def test_what_a_run_writes_and_that_it_is_never_overwritten(run, refusal):
    folder = run("run", "--max_train_steps", 4, "--eval_steps", 2, "--logging_steps", 2, "--seed", 3)
    results = json.loads((folder / "train_results.json").read_text())
    assert results["total_steps"] == 4
    assert results["arguments"]["per_device_train_batch_size"] == 2
    assert len(results["train_names"]) == len(set(results["train_names"])) == 6
    made_by = results["provenance"]
    assert made_by["seed"] == 3
    assert made_by["commit"] == provenance()["commit"] != ""
    assert made_by["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]

    lines = log(folder)
    assert [(line["step"], "loss" in line) for line in lines] == [(2, True), (2, False), (4, True), (4, False)]
    aps = {line["step"]: line["validation_ap"] for line in lines if "validation_ap" in line}
    assert results["best_validation_ap"] == max(aps.values()) == aps[results["best_step"]]
    assert all(0 <= ap <= 1 for ap in aps.values())
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert "learning_rate" in lines[0]

    for name in ("best", "last"):
        model = Reg4PruForSemanticSegmentation.from_pretrained(folder / name)
        assert model.config.pruning_layers == [0, 1]
        assert Reg4PruImageProcessor.from_pretrained(folder / name).size == {"height": 32, "width": 32}
    if results["best_step"] == 4:
        assert same(weights(folder), weights(folder, "best"))

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = refusal("run", "--max_train_steps", 1)
    assert f"--output_dir is {folder}, which is not empty: resume it, choose another or pass --overwrite" in said
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    run("run", "--max_train_steps", 1, "--overwrite_output_dir", "--logging_steps", 1)
    assert json.loads((folder / "train_results.json").read_text())["total_steps"] == 1
    assert {line["step"] for line in log(folder)} == {1}


def test_the_repository_is_checked_before_training_and_when_it_is_pushed_to(run, monkeypatch, tmp_path):
    calls = []
    target = {"private": True, "overwrite": False}

    def check_target(*arguments, **settings):
        assert settings.pop("tag", None) is None
        assert (arguments, settings) == (("user/name", "model"), target)
        calls.append("trained" if (tmp_path / "run" / "last").exists() else "checked")

    def upload(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("reg4pru.hub.publishing.check_target", check_target)
    monkeypatch.setattr("reg4pru.hub.transfer.check_target", check_target)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", upload)
    with pytest.raises(SystemExit, match=r"saved in .*run/best, but"):
        run("run", "--max_train_steps", "1", "--push_to_hub", "--hub_model_id", "user/name", "--hub_private_repo")
    assert calls == ["checked", "trained"]


def killed_after(monkeypatch, step):
    """The power fails just before the optimiser's step `step + 1`, that is after the full state of `step`."""
    update, steps = torch.optim.AdamW.step, []

    def fail(self, *args, **kwargs):
        if len(steps) == step:
            raise RuntimeError("killed")
        steps.append(1)
        return update(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)


DEFAULT_RECIPE = ("--keep_rate_range", 0.3, 0.6, "--gradient_accumulation_steps", 2, "--dense_fraction", 0.3,
                  "--distillation", "--selector_learning_rate", 1e-2)  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        ("--keep_rate_warmup", 0.9),
        ("--keep_rate_range", 0.3, 1.0, "--gradient_accumulation_steps", 2, "--dense_fraction", 0.3),
        DEFAULT_RECIPE,
    ],
    ids=["warmup", "range-accumulation", "default-recipe"],
)
def test_a_killed_run_resumes_as_if_nothing_had_happened(run, monkeypatch, more):
    # A log line holds 4 steps and a full state comes every 3: the losses between them must not be lost.
    more = (*more, "--max_train_steps", 8, "--checkpointing_steps", 3, "--logging_steps", 4, "--eval_steps", 3,
            "--ema_decay", 0.9)  # fmt: skip
    config = {**CONFIG, **VARIANTS["default"]} if "--distillation" in more else CONFIG
    whole = run("whole", *more, config=config)
    with monkeypatch.context() as patch:
        killed_after(patch, 5)
        with pytest.raises(RuntimeError, match="killed"):
            run("killed", *more, config=config)
    killed = whole.parent / "killed"
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["step-00000003"]
    assert not (killed / "last").exists()
    assert log(killed)[-1]["step"] == 4  # after the full state: must not stand twice
    with open(killed / "training_log.jsonl", "a", encoding="utf-8") as log_file:
        log_file.write('{"step": 5, "lo')  # a line that was being written

    torch.manual_seed(77)  # another process would not have this one's random state either
    run("killed", *more, "--resume_from_checkpoint", "latest", config=config)
    assert any("drift_corrections" in name for name in weights(whole)) == ("--distillation" in more)
    for name in ("last", "best"):
        assert same(weights(killed, name), weights(whole, name))
    assert log(killed) == log(whole)
    results = [json.loads((folder / "train_results.json").read_text()) for folder in (killed, whole)]
    assert results[0]["best_validation_ap"] == results[1]["best_validation_ap"]
    assert results[0]["best_step"] == results[1]["best_step"]


def test_a_finished_run_can_be_resumed_and_another_run_is_never_mixed_in(run, refusal):
    more = ("--max_train_steps", 2, "--checkpointing_steps", 2)
    one = run("one", *more)
    before = weights(one)
    run("one", *more, "--resume_from_checkpoint", "latest")
    assert same(weights(one), before)

    state = one / "checkpoints" / "step-00000002"
    other = run("other", *more, "--seed", 1)
    assert "is not empty" in refusal("other", *more, "--resume_from_checkpoint", state)
    assert "no checkpoint to resume from" in refusal("third", *more, "--resume_from_checkpoint", "latest")
    assert not (one.parent / "third").exists()
    third = run("third", *more, "--max_train_steps", 3, "--resume_from_checkpoint", state)
    assert not same(weights(third), weights(one))
    assert not same(weights(other), weights(one))


def test_a_seed_gives_one_result(run):
    more = ("--max_train_steps", 3, "--logging_steps", 1)
    one, again = run("one", *more), run("again", *more)
    assert same(weights(one), weights(again))
    assert log(one) == log(again)
    assert not same(weights(one), weights(run("other", *more, "--seed", 1)))


def apart(one, other):
    """Mean distance of weights. Where a gradient is zero but for rounding, AdamW still takes a step of full length."""
    distances = [(weights(one)[name] - weight).abs().flatten() for name, weight in weights(other).items()]
    return torch.cat(distances).mean().item()


DENSE = {**CONFIG, "train_pruning": "none", "routing": False}  # nothing is drawn in a step
STEPS = ("--max_train_steps", 3, "--logging_steps", 1, "--ema_decay", 0, "--keep_rate_warmup", 0)


def test_two_batches_of_two_are_one_batch_of_four(run):
    one = run("four", *STEPS, "--per_device_train_batch_size", 4, config=DENSE)
    two = run("two", *STEPS, "--gradient_accumulation_steps", 2, config=DENSE)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert 10 * apart(one, two) < apart(one, run("small", *STEPS, config=DENSE))


def train_with_two_processes(output_dir, cache, steps, timeout):
    overrides = [f"{field}={json.dumps(value)}" for field, value in DENSE.items()]
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--module", "reg4pru", "train"]
    command = [sys.executable, "-m", *launch, "--output_dir", str(output_dir), *FLAGS, *map(str, steps),
               "--checkpointing_steps", "2", "--config_overrides", *overrides]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(cache)}
    ended = subprocess.run(
        command, cwd=output_dir.parent, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_processes_end(tmp_path, cache):
    # Freed in the wrong order, the process group hangs in one run of three, long after the last step.
    for count in range(20):
        train_with_two_processes(tmp_path / str(count), cache, ["--max_train_steps", 1], timeout=120)


@pytest.mark.slow
def test_torchrun_trains_one_model(run, tmp_path, cache):
    one = run("one", *STEPS, "--per_device_train_batch_size", 4, config=DENSE)
    two = tmp_path / "two"
    train_with_two_processes(two, cache, STEPS, timeout=120)
    # Each process had two of the four images of a step, and one of them wrote.
    assert apart(one, two) < 1e-5
    assert [line["step"] for line in log(two)] == [line["step"] for line in log(one)]
    aps = [[line["validation_ap"] for line in log(folder) if "validation_ap" in line] for folder in (one, two)]
    assert aps[1] == pytest.approx(aps[0], abs=1e-2)
    assert json.loads((two / "train_results.json").read_text())["total_steps"] == 3
    assert [path.name for path in (two / "checkpoints").iterdir()] == ["step-00000002"]
    states = {path.name for path in (two / "checkpoints" / "step-00000002").glob("random_states*")}
    assert states == {"random_states_0.pkl", "random_states_1.pkl"}


def test_bf16_and_checkpointed_layers_train(run, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # a CPU without instructions for it
    plain = ("--max_train_steps", 2, "--logging_steps", 1)
    whole, half = losses(run("plain", *plain)), losses(run("bf16", *plain, "--mixed_precision", "bf16"))
    assert all(map(math.isfinite, half))
    assert half != whole
    assert caplog.text.count("bf16 has no instructions on this machine and is emulated") == 1
    assert half == pytest.approx(whole, rel=0.05)
    assert losses(run("recomputed", *plain, "--gradient_checkpointing")) == pytest.approx(whole, rel=1e-5)


def test_training_starts_from_a_checkpoint_or_a_backbone(run, tmp_path):
    torch.manual_seed(5)
    start = Reg4PruForSemanticSegmentation(Reg4PruConfig(**CONFIG, id2label={0: "background", 1: "vessel"}))
    start.save_pretrained(tmp_path / "start")
    frozen = ("--max_train_steps", 1, "--learning_rate", 1e-30, "--weight_decay", 0)
    folder = run("tuned", "--model_name_or_path", tmp_path / "start", *frozen, config={"keep_rates": 0.5})
    assert close(weights(folder), start.state_dict(), 1e-12)  # zeros moved by the learning rate
    assert json.loads((folder / "last" / "config.json").read_text())["keep_rates"] == 0.5

    backbone = DINOv3ViTModel(DINOv3ViTConfig(**SIZES, image_size=32, patch_size=8, num_register_tokens=1))
    backbone.save_pretrained(tmp_path / "dinov3")
    head = {name: value for name, value in CONFIG.items() if name not in (*SIZES, "num_register_tokens")}
    folder = run("on_backbone", "--backbone_name_or_path", tmp_path / "dinov3", *frozen, config=head)
    ours, theirs = weights(folder), backbone.state_dict()
    assert torch.equal(ours["embeddings.patch_embeddings.weight"], theirs["embeddings.patch_embeddings.weight"])
    assert torch.equal(ours["layers.3.mlp.up_proj.weight"], theirs["model.layer.3.mlp.up_proj.weight"])


@pytest.mark.parametrize(
    ("flags", "config", "words"),
    [
        ([], {"keep_rats": 0.5}, ["config_overrides has ['keep_rats']"]),
        ([], {"keep_rates": 7}, ["config_overrides", "`keep_rates` contains 7", "must lie in (0, 1]"]),
        (
            [],
            {**CONFIG, "num_labels": 5, "num_queries": 10},
            ["The model has 5 classes", "the data set 2 (background, vessel)"],
        ),
        ([], {**CONFIG, "dtype": "bfloat16"}, ["config_overrides has dtype=bfloat16", "trained in float32"]),
        ([], {"hidden_size": "big"}, ["config_overrides", "'hidden_size' expected int", "'big'"]),
        (["--model_name_or_path", "no/where/at/all"], CONFIG, ["--model_name_or_path is no/where/at/all"]),
        (["--backbone_name_or_path", "no/where/at/all"], CONFIG, ["--backbone_name_or_path is no/where/at/all"]),
        (["--dataset", "no/where/at/all"], CONFIG, ["'no/where/at/all' is no", "Known are"]),
        (["--resume_from_checkpoint", "no/where"], CONFIG, ["no/where is not a full state of `reg4pru train`"]),
    ],
    ids=str,
)
def test_what_there_is_not_is_refused_before_anything_is_written(refusal, tmp_path, flags, config, words):
    said = refusal("bad", *flags, config=config)
    assert all(word in said for word in words), said
    assert not (tmp_path / "bad").exists()


@pytest.fixture
def model():
    return SimpleNamespace(config=SimpleNamespace(keep_rates=0.5, num_stages=2))


def test_keep_rates_go_from_dense_to_their_target(model):
    arguments = PruningScheduleArguments(keep_rate_warmup=0.2, dense_fraction=0.5)
    rates = {progress: keep_rates_of_step(model, arguments, progress) for progress in (0, 0.5, 0.6, 0.7, 1)}
    assert rates[0] == rates[0.5] == (1.0, 1.0)  # the dense part, and where the warm-up begins
    # Half way the cumulative rates are half way: 1 -> 0.5 at the first stage, 1 -> 0.25 at the second.
    assert rates[0.6] == pytest.approx((0.75, 0.625 / 0.75))
    assert rates[0.7] == pytest.approx((0.5, 0.5))
    assert rates[1] == (0.5, 0.5)
    assert keep_rates_of_step(model, PruningScheduleArguments(keep_rate_warmup=0), 0.0) == (0.5, 0.5)


def test_keep_rates_are_drawn_from_the_range_by_torchs_generator(model):
    arguments = PruningScheduleArguments(keep_rate_range=[0.3, 0.9])
    torch.manual_seed(4)
    drawn = [keep_rates_of_step(model, arguments, 0.0) for _ in range(200)]
    torch.manual_seed(4)
    assert drawn == [keep_rates_of_step(model, arguments, 0.7) for _ in range(200)]
    assert all(first == second and 0.3 <= first <= 0.9 for first, second in drawn)
    assert min(drawn)[0] < 0.35 < 0.85 < max(drawn)[0]
