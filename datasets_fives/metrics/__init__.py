"""Metrics of segmentation: of vessels and of any classes; also for `evaluate`."""

from .accumulator import ERRORS, METRICS, VesselMetrics
from .class_metrics import ClassMetrics
from .evaluation import measure

__all__ = ["ERRORS", "METRICS", "ClassMetrics", "VesselMetrics", "measure"]
