"""FIVES, the vessel segmentation benchmark: data, splits, augmentation and tiles (metrics are in their own modules)."""

from .loading import FEATURES, load_fives
from .splits import SAMPLE_SPLIT

__all__ = ["FEATURES", "SAMPLE_SPLIT", "load_fives"]
