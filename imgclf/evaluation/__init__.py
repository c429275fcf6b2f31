"""Evaluation: metrics, calibration and saliency maps from logits and targets. Names resolve lazily: most of them load torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf.evaluation.accumulators import EpochMetrics
    from imgclf.evaluation.evaluate import Evaluation, evaluate_split, predict_logits
    from imgclf.evaluation.saliency import explain

__all__ = ["EpochMetrics", "Evaluation", "evaluate_split", "explain", "predict_logits"]

_HOMES = {"EpochMetrics": "accumulators", "explain": "saliency"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'evaluate')}"), name)
