"""Pixels to logits: backbone, head, image model, weights, the checkpoint's format and engines."""
