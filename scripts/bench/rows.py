"""From raw results to the rows of the page: medians, ratios, and whether a target was met. Nothing is measured here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fits import FITS, Target

__all__ = ["Row", "rows_of"]

Run = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is what `target` is about: at least so much, or, with `at_most`, at most so much."""

    job: str
    what: str
    ours: str
    peer: str
    theirs: str
    ratio: float | None = None
    target: float | None = None
    at_most: bool = False
    unit: str = "x"

    @property
    def met(self) -> str:
        """met, not met, failed, or nothing where no target was set."""
        if self.target is None:
            return ""
        if self.ratio is None:
            return "failed"
        return "met" if (self.ratio <= self.target if self.at_most else self.ratio >= self.target) else "not met"


def rows_of(name: str, result: dict[str, Any]) -> list[Row]:
    """The rows of one job's results."""
    if "failed" in result:
        return [Row(name, "", f"failed: {result['failed']}", "", "")]
    runs = result["runs"]
    if name in FITS:
        return [_compared(name, runs, target) for target in FITS[name].targets]
    return SPECIAL[name](runs, result["about"])


def _compared(name: str, runs: Sequence[Run], target: Target) -> Row:
    """imgclf and one peer at what the target is about."""
    variant = "warm" if target.what.endswith("warm") else "cold"
    ours = _median(runs, "imgclf", target.what, variant)
    theirs = _median(runs, target.peer, target.what)
    higher = target.what == "images/s"
    ratio = None if ours is None or theirs is None else (ours / theirs if higher else theirs / ours)
    show = _rate if higher else _seconds
    peers = _of(runs, target.peer)
    note = _failure(peers)
    if not note and not higher and any(run["measured_epochs"] < run["epochs"] for run in peers):
        note = f"extrapolated from {peers[0]['measured_epochs']} epochs"
    return Row(name, target.what, _cell(show, ours, _failure(_of(runs, "imgclf", variant))), target.peer,
               _cell(show, theirs, note), ratio, target.at_least)  # fmt: skip


def _vgg16(runs: Sequence[Run], about: dict[str, Any]) -> list[Row]:
    fit = _compared("vgg16_frozen", runs, Target("fit", "keras", None))
    ours, theirs = (_median(runs, who, "images/s", "engine") for who in ("imgclf", "keras"))
    ratio = None if ours is None or theirs is None else ours / theirs
    target = None if ratio is None else 0.8 * about["epochs"] * ratio
    engine = next((run["chosen"] for run in _of(runs, "imgclf", "engine") if "chosen" in run), "engine")
    forward = Row("vgg16_frozen", f"bare forward pass ({engine})", _cell(_rate, ours, _failure(_of(runs, "imgclf", "engine"))),
                  "keras", _cell(_rate, theirs, _failure(_of(runs, "keras", "engine"))), ratio)  # fmt: skip
    what = f"fit; target 80 % of {about['epochs']} x the engines' ratio"
    return [Row(fit.job, what, fit.ours, fit.peer, fit.theirs, fit.ratio, target), forward]


def _counted(runs: Sequence[Run], about: dict[str, Any]) -> list[Row]:
    distinct = sum(about["distinct"].values())
    forwards = next((run.get("forwards") for run in runs), None)
    shown = _failure(runs) or (f"{forwards:,}" if forwards is not None else "-")
    return [Row("asl_vgg16_counted", "pictures through the frozen part", shown, "distinct pictures", f"{distinct:,}",
                None if forwards is None else forwards / distinct, 1.0, at_most=True)]  # fmt: skip


def _predict(runs: Sequence[Run], about: dict[str, Any]) -> list[Row]:
    theirs = _median(runs, "keras", "images/s", "fp32")
    rows = []
    for precision, target in (("fp32", 2.0), ("bf16", 4.0)):
        ours = _median(runs, "imgclf", "images/s", precision)
        ratio = None if ours is None or theirs is None else ours / theirs
        rows.append(Row("predict_throughput", f"MobileNetV2 @224 from JPEG, {precision}",
                        _cell(_rate, ours, _failure(_of(runs, "imgclf", precision))), "keras",
                        _cell(_rate, theirs, _failure(_of(runs, "keras"))), ratio, target))  # fmt: skip
    return rows


def _memory(runs: Sequence[Run], about: dict[str, Any]) -> list[Row]:
    rows = []
    for name in ("frozen", "trained"):
        once, four = (_median(runs, "imgclf", "anonymous", f"{name} {times}x") for times in (1, 4))
        ratio = None if once is None or four is None else four / once
        rows.append(Row("memory", f"peak anonymous, {name}", _cell(_mib, four, _failure(_of(runs, "imgclf", f"{name} 4x"))),
                        "a quarter of the pictures", _cell(_mib, once, _failure(_of(runs, "imgclf", f"{name} 1x"))), ratio,
                        1.1, at_most=True))  # fmt: skip
    return rows


def _pipeline(runs: Sequence[Run], about: dict[str, Any]) -> list[Row]:
    ours, theirs = (_median(runs, who, "images/s") for who in ("imgclf", "torchvision"))
    ratio = None if ours is None or theirs is None else ours / theirs
    return [Row("input_pipeline", "augmented @224, one core, cached", _cell(_rate, ours, _failure(_of(runs, "imgclf"))),
                "torchvision", _cell(_rate, theirs, _failure(_of(runs, "torchvision"))), ratio, 3.0)]  # fmt: skip


def _startup(runs: Sequence[Run], about: dict[str, Any]) -> list[Row]:
    rows, torch = [], _median(runs, "imgclf", "whole", "import torch")
    for run in runs:
        seconds = run.get("wall_seconds")
        if run["variant"] == "import torch":
            continue
        against = run["variant"] == "predict one file"
        ratio = (seconds / torch if seconds and torch else None) if against else seconds
        rows.append(Row("startup", run["variant"], _cell(_seconds, seconds, run.get("failed", "")),
                        "import torch" if against else "", _cell(_seconds, torch, "") if against else "", ratio,
                        None if against else 1.0, at_most=True, unit="x" if against else " s"))  # fmt: skip
    return rows


def _size(runs: Sequence[Run], about: dict[str, Any]) -> list[Row]:
    rows = []
    for times in (1, 4, 16):
        chosen = [run for run in runs if run["variant"] == f"{times}x"]
        row = _compared("size", [{**run, "variant": "cold"} for run in chosen], Target("fit", "keras", None))
        rows.append(Row("size", f"fit, {times}x the pictures", row.ours, row.peer, row.theirs, row.ratio))
    return rows


SPECIAL: dict[str, Callable[[Sequence[Run], dict[str, Any]], list[Row]]] = {
    "vgg16_frozen": _vgg16, "asl_vgg16_counted": _counted, "predict_throughput": _predict, "memory": _memory,
    "input_pipeline": _pipeline, "startup": _startup, "size": _size,
}  # fmt: skip

VALUES: dict[str, Callable[[Run], float]] = {
    "fit": lambda run: run["fit_seconds"],
    "whole": lambda run: run["wall_seconds"],
    "whole warm": lambda run: run["wall_seconds"],
    "setup + fit": lambda run: (
        run["fit_seconds"] + run.get("reading_seconds", run.get("seconds", {}).get("setup", 0.0))
    ),
    "images/s": lambda run: run["images_per_second"],
    "anonymous": lambda run: run["anonymous_mib"],
}


def _of(runs: Sequence[Run], who: str, variant: str | None = None) -> list[Run]:
    """The runs of one side; a peer's own have no variant, and other measurements of it are left out."""
    wanted = "" if variant is None and any(run["who"] == who and run["variant"] == "" for run in runs) else variant
    return [run for run in runs if run["who"] == who and wanted in (None, run["variant"])]


def _median(runs: Sequence[Run], who: str, what: str, variant: str | None = None) -> float | None:
    values = [VALUES[what](run) for run in _of(runs, who, variant) if "failed" not in run]
    return median(values) if values else None


def _failure(runs: Sequence[Run]) -> str:
    return next((f"failed: {run['failed']}" for run in runs if "failed" in run), "")


def _cell(show: Callable[[float], str], value: float | None, note: str) -> str:
    text = "-" if value is None else show(value)
    return f"{text} ({note})" if note else text


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _rate(value: float) -> str:
    return f"{value:,.1f} images/s" if value < 100 else f"{value:,.0f} images/s"


def _mib(value: float) -> str:
    return f"{value:,.0f} MiB"
