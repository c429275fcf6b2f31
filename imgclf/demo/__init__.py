"""The built-in demo: small drawn versions of the five data sets."""

from imgclf.demo.datasets import DEMO_NAMES, demo_folder

__all__ = ["DEMO_NAMES", "demo_folder"]
