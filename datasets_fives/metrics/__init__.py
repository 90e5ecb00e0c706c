"""Metrics of vessel segmentation: streamed over images, pooled, by image and by group; also for `evaluate`."""

from .accumulator import ERRORS, METRICS, VesselMetrics
from .evaluation import measure

__all__ = ["ERRORS", "METRICS", "VesselMetrics", "measure"]
