"""Maintenance of this repository: rendered pages, transformers' own tests of our model, weights for the demo."""
