"""Bytes to uint8 RGB, and to the square that a network takes."""
