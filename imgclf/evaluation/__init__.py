"""Logits and targets to numbers."""
