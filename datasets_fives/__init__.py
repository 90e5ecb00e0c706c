"""FIVES, the vessel segmentation benchmark: data, splits, augmentation and tiles (metrics: in their modules)."""

from .loading import FEATURES, load_fives
from .splits import SAMPLE_SPLIT

__all__ = ["FEATURES", "SAMPLE_SPLIT", "load_fives"]
