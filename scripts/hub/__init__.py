"""Checkpoints, data sets and Spaces on the Hub, and their cards."""
