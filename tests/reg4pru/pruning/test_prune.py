"""`reg4pru prune`: from a dense checkpoint of somebody else and images without labels to one that is pruned."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, SegformerConfig, SegformerForSemanticSegmentation

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor, predict_image
from modeling_reg4pru.pruning_adapter import add_pruning, load_pruning_adapter
from modeling_reg4pru.speed_budget import fingerprint_weights
from reg4pru.prune import main
from reg4pru.pruning import distillation, levels, run
from reg4pru.pruning.images import divide_images
from reg4pru.push import main as push_main


@pytest.fixture
def flags(eomt, image_files, tmp_path) -> list[str]:
    return [
        "--model_name_or_path", str(tmp_path / "eomt"), "--images", str(image_files),
        "--output_dir", str(tmp_path / "out"), "--keep_rates", "0.7", "0.4",
    ]  # fmt: skip


def same_weights(first, second) -> bool:
    weights = [Reg4PruForSemanticSegmentation.from_pretrained(folder).state_dict() for folder in (first, second)]
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@torch.no_grad()
def test_from_a_checkpoint_of_transformers_to_a_pruned_one(eomt, flags, pixel_values, tmp_path, capsys):
    main(flags)
    out = tmp_path / "out"
    assert not (out / "unfinished").exists()
    model = Reg4PruForSemanticSegmentation.from_pretrained(out).eval()
    wanted, unpruned = eomt(pixel_values), model(pixel_values, keep_rates=None)
    torch.testing.assert_close(unpruned.masks_queries_logits, wanted.masks_queries_logits, atol=1e-5, rtol=1e-5)
    pruned = model(pixel_values)
    assert pruned.token_counts.sum() < unpruned.token_counts.sum()
    assert not torch.equal(pruned.logits, unpruned.logits)

    results = json.loads((out / "prune_results.json").read_text(encoding="utf-8"))
    assert results["num_images"] == {"fitted_on": 16, "reported_on": 4}
    assert results["num_tiles"] == 32
    assert list(results["agreement"]) == ["untrained", "calibrated"]
    processor = Reg4PruImageProcessor.from_pretrained(out)
    assert (processor.working_size, processor.size["height"]) == (96, 64)
    for row in results["agreement"]["calibrated"].values():
        assert 0 <= row["mean_iou"] <= 1
        assert row["tokens"] < 1
    printed = capsys.readouterr().out
    assert results["verdict"] in printed
    assert (out / "table.md").read_text(encoding="utf-8").strip() == printed.strip()
    assert Image.open(out / "figure.png").width > 500


def test_the_report_counts_what_predict_image_gives(flags, tmp_path):
    main(flags)
    out = tmp_path / "out"
    results = json.loads((out / "prune_results.json").read_text(encoding="utf-8"))
    model = Reg4PruForSemanticSegmentation.from_pretrained(out).eval()
    processor = Reg4PruImageProcessor.from_pretrained(out)
    names = list(results["images"])
    equal = total = 0
    for place in divide_images(len(names), 0)[1]:
        image = Image.open(tmp_path / "images" / names[place])
        dense, pruned = (predict_image(model, processor, image, rate).segmentation for rate in (None, 0.4))
        equal += int((dense == pruned).sum())
        total += dense.numel()
    assert results["agreement"]["calibrated"]["0.4"]["pixel_accuracy"] == pytest.approx(equal / total)


@torch.no_grad()
@pytest.mark.parametrize("more", [[], ["--context_grid", "3"]], ids=["", "context"])
def test_the_adapter_is_put_on_the_base_again(flags, pixel_values, tmp_path, more):
    main([*flags, *more])
    model = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    again = load_pruning_adapter(str(tmp_path / "eomt"), tmp_path / "out" / "adapter")
    assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)
    size = (tmp_path / "out" / "adapter" / "pruning_adapter.safetensors").stat().st_size
    assert size < (tmp_path / "out" / "model.safetensors").stat().st_size / 2

    other = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "eomt")
    other.query.weight += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="fits no other weights"):
        load_pruning_adapter(str(tmp_path / "other"), tmp_path / "out" / "adapter")


@pytest.mark.parametrize("stopped_at", [0, 5])
def test_a_killed_run_ends_where_an_uninterrupted_one_ends(flags, tmp_path, monkeypatch, stopped_at):
    main([*flags[:-5], "--output_dir", str(tmp_path / "whole"), *flags[-3:]])
    fits = []

    def stopping(fit):
        def fit_or_stop(*arguments):
            fits.append(fit.__name__)
            if len(fits) == stopped_at + 1:
                raise KeyboardInterrupt
            return fit(*arguments)

        return fit_or_stop

    for name in ("fit_correction", "fit_selector"):
        monkeypatch.setattr(levels, name, stopping(getattr(levels, name)))
    with pytest.raises(KeyboardInterrupt):
        main(flags)
    assert not (tmp_path / "out" / "config.json").exists()
    main(flags)
    assert len(fits) == 6 + 1  # three stages of two; what was finished is not done again
    assert same_weights(tmp_path / "whole", tmp_path / "out")


def test_a_run_that_was_killed_while_it_saved_is_finished(flags, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(run, "write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(flags)
    assert (tmp_path / "out" / "config.json").exists()
    main(flags)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"prune_results.json", "table.md", "adapter"}
    with pytest.raises(SystemExit):  # finished
        main(flags)


def test_a_disk_without_room_for_the_states_is_named(flags, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SystemExit):
        main(flags)
    assert "lower --num_tiles" in " ".join(capsys.readouterr().err.split())


def test_other_settings_do_not_go_on_with_what_was_left(flags, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(levels, "fit_selector", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main([*flags, "--seed", "1"])
    main(flags)
    main([*flags[:-5], "--output_dir", str(tmp_path / "whole"), *flags[-3:]])
    assert same_weights(tmp_path / "whole", tmp_path / "out")


def test_the_card_tells_base_and_report_and_refuses_those_of_other_weights(flags, tmp_path, monkeypatch, capsys):
    main(flags)
    out = tmp_path / "out"
    push = ["--model_name_or_path", str(out), "--hub_model_id", "user/pruned", "--base_model", "user/eomt"]
    push_main([*push, "--output_dir", str(tmp_path / "folder")])
    results = json.loads((tmp_path / "folder" / "prune_results.json").read_text(encoding="utf-8"))
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert "Made from user/eomt by `reg4pru prune`" in card
    assert results["verdict"] in card
    assert "| calibrated | 0.4 |" in card
    assert results["weights"] == fingerprint_weights(tmp_path / "folder")

    model = Reg4PruForSemanticSegmentation.from_pretrained(out)
    torch.nn.init.zeros_(model.query.weight)
    model.save_pretrained(out)
    with pytest.raises(SystemExit):
        push_main([*push, "--output_dir", str(tmp_path / "refused")])
    assert "was measured with other weights" in " ".join(capsys.readouterr().err.split())


@torch.no_grad()
def test_distillation_goes_on_after_a_kill_and_leaves_the_base_alone(flags, tmp_path, monkeypatch, pixel_values):
    distill = ["--level", "distill", "--max_steps", "6"]
    monkeypatch.setattr(distillation, "SAVE_EVERY", 2)
    main([*flags[:-5], "--output_dir", str(tmp_path / "whole"), *flags[-3:], *distill])
    step, steps = distillation._step, []

    def stopping(*arguments):
        steps.append(len(steps))
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(distillation, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        main([*flags, *distill])
    main([*flags, *distill])
    assert len(steps) == 4 + 4  # from the state of step 2
    assert same_weights(tmp_path / "whole", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "prune_results.json").read_text(encoding="utf-8"))
    assert list(results["agreement"]) == ["untrained", "calibrated", "distilled"]
    assert not (tmp_path / "out" / "adapter").exists()
    model = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    base = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "eomt").eval()
    assert not torch.equal(model(pixel_values, keep_rates=None).logits, base(pixel_values, keep_rates=None).logits)


@torch.no_grad()
def test_distillation_brings_the_pruned_prediction_nearer_to_the_dense_one(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setattr(distillation, "LEARNING_RATE", 1e-3)
    base = tiny_model(selector="learned_query", train_pruning="none")
    model = add_pruning(base, **levels.FITTED)
    tiles = torch.randn(8, 3, 64, 64).numpy()
    losses = [distillation._step(model, base, torch.from_numpy(tiles), 0.4).item()]
    distillation.distill(model, base, tiles, 60, 0, tmp_path / "state.pt")
    losses.append(distillation._step(model, base, torch.from_numpy(tiles), 0.4).item())
    assert losses[1] < 0.8 * losses[0]


def spoil(kind: str, tmp_path) -> None:
    images, eomt = tmp_path / "images", tmp_path / "eomt"
    files = sorted(images.iterdir())
    if kind == "segformer":
        shutil.rmtree(eomt)
        config = SegformerConfig(hidden_sizes=[8] * 4, decoder_hidden_size=8, num_attention_heads=[1] * 4)
        SegformerForSemanticSegmentation(config).save_pretrained(eomt)
    elif kind == "bare backbone":
        shutil.rmtree(eomt)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(eomt)
    elif kind == "no processor":
        (eomt / "preprocessor_config.json").unlink()
    elif kind == "few images":
        for file in files[5:]:
            file.unlink()
    elif kind == "copies":
        for file in files[1:]:
            shutil.copy(files[0], file)
    elif kind == "alike":
        for number, file in enumerate(files):
            pixels = np.asarray(Image.open(files[0])).copy()
            pixels[0, 0] = number
            Image.fromarray(pixels).save(file)
    elif kind == "broken":
        files[3].write_bytes(files[3].read_bytes()[:100])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("segformer", "is a 'segformer' model; reg4pru prune takes"),
        ("bare backbone", "It has no segmentation head yet"),
        ("no processor", "No image processor"),
        ("few images", "at least 32 are needed"),
        ("copies", "Got 1 distinct images"),
        ("alike", "look alike"),
        ("broken", "03.png"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_anything_is_written(flags, tmp_path, capsys, kind, message):
    spoil(kind, tmp_path)
    with pytest.raises(SystemExit) as refused:
        main(flags)
    assert refused.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--keep_rates", "1.5"], "keep rate"),
        (["--num_tiles", "0"], "--num_tiles is 0"),
        (["--dataset", "user/images"], "one of them"),
        (["--pruning_layers", "9"], "pruning_layers"),
        (["--output_dir", "images"], "not empty"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main([*flags, *more])
    assert refused.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
