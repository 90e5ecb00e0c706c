"""Checkpoints, loaded for inference: what is refused, and the control that selects by chance."""

import pytest
import torch

from modeling_reg4pru.tiled_inference import predict_image
from reg4pru.inference import loading


def test_random_selection_follows_the_seed(tiny_model, images, save_checkpoint):
    model, processor = loading.load_checkpoint(str(save_checkpoint(tiny_model())), device="cpu")
    image = images[0]["image"]
    learned = predict_image(model, processor, image, 0.5, output_stages=True).stages
    loading.select_at_random(model)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(predict_image(model, processor, image, 0.5, output_stages=True).stages)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], learned)


def test_a_model_of_another_number_of_classes_is_refused(tiny_model, save_checkpoint):
    folder = str(save_checkpoint(tiny_model(num_labels=5, num_queries=12)))
    assert loading.load_checkpoint(folder)[0].config.num_labels == 5
    with pytest.raises(ValueError, match=r"5 classes apart \(LABEL_0, .*\): this needs one of 2"):
        loading.load_checkpoint(folder, num_labels=2)


def test_incomplete_checkpoint_is_refused(tiny_model, save_checkpoint):
    model = tiny_model()
    folder = save_checkpoint(model)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("mask_head.")}
    model.save_pretrained(folder, state_dict=weights)

    with pytest.raises(ValueError, match=r"lacks \d+ weights.* mask_head"):
        loading.load_checkpoint(str(folder))


def test_damaged_checkpoint_is_refused(tiny_model, save_checkpoint):
    weights = save_checkpoint(tiny_model()) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])

    with pytest.raises(ValueError, match=f"could be loaded from '{weights.parent}'"):
        loading.load_checkpoint(str(weights.parent))


@pytest.mark.parametrize(("keywords", "message"), [({"device": "nowhere"}, "nowhere"), ({"dtype": "int8"}, "int8")])
def test_wrong_device_or_type(tiny_model, save_checkpoint, keywords, message):
    with pytest.raises(ValueError, match=message):
        loading.load_checkpoint(str(save_checkpoint(tiny_model())), **keywords)


def test_the_type_of_the_weights_is_the_one_asked_for(tiny_model, save_checkpoint):
    half, _ = loading.load_checkpoint(str(save_checkpoint(tiny_model())), dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert not half.training
