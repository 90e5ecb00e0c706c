"""Metrics of segmentation: of vessels and of any classes; also for `evaluate`."""

from .accumulator import ERRORS, METRICS, VesselMetrics
from .class_evaluation import MeasuredClasses, measure_classes
from .class_metrics import ClassMetrics
from .evaluation import measure

__all__ = ["ERRORS", "METRICS", "ClassMetrics", "MeasuredClasses", "VesselMetrics", "measure", "measure_classes"]
