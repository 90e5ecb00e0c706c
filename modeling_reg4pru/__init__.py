"""Token-pruned image segmentation, trained with random token routing (Reg4Pru, arXiv 2602.02163)."""

from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_reg4pru import Reg4PruConfig
from .image_processing_reg4pru import Reg4PruImageProcessor
from .modeling_outputs_reg4pru import Reg4PruSemanticSegmenterOutput
from .modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruPreTrainedModel
from .pipeline_reg4pru import Reg4PruImageSegmentationPipeline
from .tiled_inference import ImagePrediction, predict_image, predict_images

AutoConfig.register("reg4pru", Reg4PruConfig)
AutoModel.register(Reg4PruConfig, Reg4PruForSemanticSegmentation)
AutoModelForSemanticSegmentation.register(Reg4PruConfig, Reg4PruForSemanticSegmentation)
# Imported from its module: without torchvision transformers 5.17 refuses the name at its top level.
AutoImageProcessor.register(Reg4PruConfig, image_processor_classes={"pil": Reg4PruImageProcessor})
# Not by `register_pipeline`, which warns that the task has one. For other models this class stands back.
PIPELINE_REGISTRY.supported_tasks["image-segmentation"] = {
    **PIPELINE_REGISTRY.supported_tasks["image-segmentation"],
    "impl": Reg4PruImageSegmentationPipeline,
}

# What save_pretrained and push_to_hub write beside the weights, so that others need not install this package.
Reg4PruConfig.register_for_auto_class()
Reg4PruForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
Reg4PruImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = [
    "ImagePrediction",
    "Reg4PruConfig",
    "Reg4PruForSemanticSegmentation",
    "Reg4PruImageProcessor",
    "Reg4PruImageSegmentationPipeline",
    "Reg4PruPreTrainedModel",
    "Reg4PruSemanticSegmenterOutput",
    "predict_image",
    "predict_images",
]
