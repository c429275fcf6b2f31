"""Drawn miniatures of the five data sets."""
