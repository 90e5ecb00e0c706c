"""Metrics: streaming over images, by image, by group; and the module for `evaluate`."""
