"""Drawn miniatures of the five data sets."""

from imgclf.demo.datasets import demo_folder

__all__ = ["demo_folder"]
