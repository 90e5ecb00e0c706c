"""transformers' own common tests, run against our model. Needs its test sources: `make conformance`."""

import unittest

import pytest

pytest.importorskip("transformers_tests", reason="the test sources of transformers are fetched by `make conformance`")

import torch
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation

pytestmark = pytest.mark.conformance


class Reg4PruModelTester:
    """A model of two layers, for which the common tests are made, that prunes after its first one."""

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.batch_size, self.num_channels, self.image_size, self.num_labels = 2, 3, 32, 2
        self.is_training, self.train_pruning = True, "soft"
        self.num_hidden_layers, self.hidden_size, self.num_attention_heads = 2, 32, 2

    def get_config(self) -> Reg4PruConfig:
        return Reg4PruConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            image_size=self.image_size,
            patch_size=4,
            num_upscale_blocks=1,
            num_blocks=1,
            pruning_layers=[0],
            reactivation_layer=1,
            train_pruning=self.train_pruning,
            routing=False,  # needs three layers
            masked_attention=False,
            train_num_points=64,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Reg4PruConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {
            "pixel_values": floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        }


class Reg4PruModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (Reg4PruForSemanticSegmentation,)
    is_encoder_decoder = False

    def setUp(self):
        self.model_tester = Reg4PruModelTester(self)
        self.config_tester = ConfigTester(self, config_class=Reg4PruConfig, has_text_modality=False, num_queries=9)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            batch, _, height, width = inputs_dict["pixel_values"].shape
            inputs_dict["labels"] = (inputs_dict["pixel_values"][:, 0] > 0.5).long()
            assert inputs_dict["labels"].shape == (batch, height, width)
        return inputs_dict

    def test_config(self):
        self.config_tester.run_common_tests()

    # What the common tests ask of text models or of models whose layers all see the same tokens.

    @unittest.skip(reason="patches are embedded by a convolution; there are no token embeddings")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip(reason="there is no vocabulary to resize")
    def test_resize_tokens_embeddings(self):
        pass

    @unittest.skip(reason="layers see different numbers of tokens; see test_layers_and_their_tokens")
    def test_attention_outputs(self):
        pass

    @unittest.skip(reason="layers see different numbers of tokens; see test_layers_and_their_tokens")
    def test_hidden_states_output(self):
        pass

    def test_layers_and_their_tokens(self):
        """In place of the two above: one entry a layer, as long as `token_counts` says."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = Reg4PruForSemanticSegmentation._from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        counts = outputs.token_counts.tolist()
        assert len(counts) == self.model_tester.num_hidden_layers
        assert [attention.shape[-1] for attention in outputs.attentions] == list(counts)
        assert outputs.attentions[0].shape[1] == self.model_tester.num_attention_heads
        assert outputs.hidden_states[0].shape[1:] == (counts[0], self.model_tester.hidden_size)

    def test_retain_grad_hidden_states_attentions(self):
        # Under a soft policy the weights shown are put together from the kernel's, which alone have a gradient.
        self.model_tester.train_pruning = "none"
        super().test_retain_grad_hidden_states_attentions()

    @unittest.skip("a checkpoint without the weights of the model is refused")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass
