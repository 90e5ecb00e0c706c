"""Segmentation data sets, retinal vessels first: sources, splits, augmentation and tiles; metrics in `metrics`."""

from .class_names import class_names
from .features import FEATURES
from .fives import load_fives
from .loading import load_segmentation, load_vessels
from .splits import SAMPLE_SPLIT

__all__ = ["FEATURES", "SAMPLE_SPLIT", "class_names", "load_fives", "load_segmentation", "load_vessels"]
