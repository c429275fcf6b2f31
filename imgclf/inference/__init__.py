"""A checkpoint to predictions for images."""
