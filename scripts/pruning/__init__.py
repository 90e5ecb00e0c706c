"""Pruning a segmentation ViT that was never trained for it, on images without labels."""
