"""Segmentation data sets, retinal vessels first: sources, splits, augmentation and tiles; metrics in `metrics`."""

from .features import FEATURES
from .loading import load_fives, load_vessels
from .splits import SAMPLE_SPLIT

__all__ = ["FEATURES", "SAMPLE_SPLIT", "load_fives", "load_vessels"]
