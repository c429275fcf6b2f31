"""Write the results page in Markdown, with its plots, from the results file alone: medians, ratios, and targets met."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jobs import FITS, Target
from process import Run

__all__ = ["QUANTITIES", "write_page"]

METHOD = """All figures come from one series, in which imgclf and its peers ran in turn: imgclf as often as `runs` says (the
median counts), each peer once, epoch by epoch. All see the same images in the same splits (links to the files of imgclf's
splits), train the same network to the parameter, from random weights, with the same batch size, and validate after every
epoch on the same images; training data are shuffled. Libraries and images were read once before. `fit` is training with its
validation; `whole` is the process from start to exit, including a test of the network and saving it. Cold: the cache folder
is empty; warm: it is that of the run before. images/s are training images divided by the seconds of an epoch (validation
included), the median of the epochs after the first. Peak memory is what a process and its children hold themselves (RssAnon,
read five times per second), without mapped files.

- **imgclf**: its command line as a user types it, with `report=false` and defaults otherwise.
- **keras**: `image_dataset_from_directory` (bilinear), prefetch, `fit` with `jit_compile="auto"`; no `cache()`. Augmentation
  by Keras's layers, mapped over batches in parallel. oneDNN is on (`TF_ENABLE_ONEDNN_OPTS=1`) where TensorFlow would leave it
  off.
- **fastai**: `ImageDataLoaders.from_folder` and a `Learner` on the same network, with fastai's default number of workers.
- **timm_loop**: a loop like timm's train.py on timm's loader, with its `--channels-last` and two workers.
- **lightning_plain**: `ImageFolder` and a `DataLoader` with two workers, stock settings (no channels_last).

No peer's allocator was tuned."""
LIMITS = "[speed_limits.md](speed_limits.md) explains each target that is not met."
COLOURS = {"imgclf": "#1f6fb4", "keras": "#d1662a"}
LABELS = {"imgclf": "imgclf, cold caches", "keras": "Keras"}
Points = Mapping[str, Sequence[tuple[float, float]]]


def write_page(results: Run, path: Path, date: str | None) -> None:
    """Write the page to `path`, and the plots `<stem>_size.png` and `<stem>_epochs.png` beside it."""
    meta, jobs = results["meta"], results["jobs"]
    rows = [row for name, result in jobs.items() for row in _rows(name, result)]
    parts = ["# Speed", f"Measured {date or meta['date']}{_toy_note(jobs)}. {_machine(meta)}"]
    parts += [f"Versions: {_versions(meta, jobs)}.", METHOD, LIMITS, "## Against the peers", "\n".join(_table(rows))]
    parts += [
        "A ratio above 1 is in imgclf's favour, except in rows with the target `at most`.",
        "## Each side by itself",
    ]
    parts.append("\n".join(_sides(jobs)))
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = jobs.get("size", {}).get("runs", [])
    size, epochs = (path.with_name(f"{path.stem}_{what}.png") for what in ("size", "epochs"))
    if _plot_size(runs, size):
        parts += ["## More images", "The frozen job on one, four and sixteen copies of its images."]
        parts.append(f"![Seconds of fit against training images]({size.name})")
    if _plot_epochs(runs, epochs):
        parts += ["## More epochs", "The same job; Keras's points are computed from the epochs that it ran."]
        parts.append(f"![Seconds of fit against epochs]({epochs.name})")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _machine(meta: Run) -> str:
    machine = f"{meta['processor']}, {meta['cores']} cores, {meta['memory_gib']} GiB of memory"
    commit = (meta["git_commit"] or "unknown")[:12]
    return f"{machine}, {meta['platform'].partition('-')[0]}, Python {meta['python']}; imgclf at commit {commit}."


def _toy_note(jobs: Run) -> str:
    """Jobs of toy size are no measurement, and the page states it."""
    toys = [name for name, result in jobs.items() if result.get("quick")]
    return f" (**toy sizes, no measurement**: {', '.join(toys)})" if toys else ""


def _versions(meta: Run, jobs: Run) -> str:
    sides = {"imgclf": {name: version for name, version in meta["versions"].items() if version}}
    for result in jobs.values():
        for run in result.get("runs", []):
            if "versions" in run:
                sides.setdefault(run["who"], run["versions"])
    lists = {
        who: ", ".join(f"{name} {version}" for name, version in versions.items()) for who, versions in sides.items()
    }
    return "; ".join(f"{who}: {versions}" for who, versions in lists.items())


# The comparisons.


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _rate(value: float) -> str:
    return f"{value:,.1f} images/s" if value < 100 else f"{value:,.0f} images/s"


def _mib(value: float) -> str:
    return f"{value:,.0f} MiB"


def _setup_and_fit(run: Run) -> float:
    return run["fit_seconds"] + run.get("reading_seconds", run.get("seconds", {}).get("setup", 0.0))


# What a row compares -> its value in a run, and how it is written.
QUANTITIES: dict[str, tuple[Callable[[Run], float], Callable[[float], str]]] = {
    "fit": (lambda run: run["fit_seconds"], _seconds),
    "whole": (lambda run: run["wall_seconds"], _seconds),
    "whole warm": (lambda run: run["wall_seconds"], _seconds),
    "setup + fit": (_setup_and_fit, _seconds),
    "images/s": (lambda run: run["images_per_second"], _rate),
    "anonymous": (lambda run: run["anonymous_mib"], _mib),
}


@dataclass(frozen=True)
class Side:
    """The median of one side's runs (None where all failed), and its cell in the table."""

    value: float | None
    cell: str


def _side(runs: Sequence[Run], what: str, who: str, variant: str | None = None, note: str = "") -> Side:
    read, write = QUANTITIES[what]
    chosen = _select(runs, who, variant)
    values = [read(run) for run in chosen if "failed" not in run]
    value = median(values) if values else None
    note = next((f"failed: {run['failed']}" for run in chosen if "failed" in run), note)
    text = "-" if value is None else write(value)
    return Side(value, f"{text} ({note})" if note else text)


def _select(runs: Sequence[Run], who: str, variant: str | None = None) -> list[Run]:
    """Return the runs of one side; a peer's own have no variant, and other measurements of it are left out."""
    wanted = "" if variant is None and any(run["who"] == who and run["variant"] == "" for run in runs) else variant
    return [run for run in runs if run["who"] == who and wanted in (None, run["variant"])]


def _ratio(over: Side, under: Side) -> float | None:
    return over.value / under.value if over.value and under.value else None


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is what `target` is about: at least so much, or with `at_most` at most so much."""

    job: str
    what: str
    ours: str
    peer: str
    theirs: str
    ratio: float | None = None
    target: float | None = None
    at_most: bool = False
    unit: str = "x"

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells, the last of which is met, not met, failed, or empty where no target was set."""
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}{self.unit}"
        limit, verdict = "", ""
        if self.target is not None:
            limit = f"{'at most' if self.at_most else 'at least'} {self.target:.3g}{self.unit}"
            verdict = "failed" if self.ratio is None else "met" if self._is_met(self.ratio, self.target) else "not met"
        return f"`{self.job}`", self.what, self.ours, self.peer, self.theirs, ratio, limit, verdict

    def _is_met(self, ratio: float, target: float) -> bool:
        return ratio <= target if self.at_most else ratio >= target


def _rows(name: str, result: Run) -> list[Row]:
    """Return the rows of one job's results."""
    if "failed" in result:
        return [Row(name, "", f"failed: {result['failed']}", "", "")]
    if name in FITS:
        return [_compare(name, result["runs"], target) for target in FITS[name].targets]
    return ROWS[name](result["runs"], result["about"])


def _compare(name: str, runs: Sequence[Run], target: Target) -> Row:
    """Compare imgclf with one peer at what the target is about."""
    higher_is_better = target.what == "images/s"
    peers, note = _select(runs, target.peer), ""
    if not higher_is_better and any("failed" not in run and run["measured_epochs"] < run["epochs"] for run in peers):
        note = f"extrapolated from {peers[0]['measured_epochs']} epochs"
    ours = _side(runs, target.what, "imgclf", "warm" if target.what.endswith("warm") else "cold")
    theirs = _side(runs, target.what, target.peer, note=note)
    ratio = _ratio(ours, theirs) if higher_is_better else _ratio(theirs, ours)
    return Row(name, target.what, ours.cell, target.peer, theirs.cell, ratio, target.at_least)


def _vgg16_rows(runs: Sequence[Run], about: Run) -> list[Row]:
    fit = _compare("vgg16_frozen", runs, Target("fit", "keras", None))
    ours, theirs = (_side(runs, "images/s", who, "engine") for who in ("imgclf", "keras"))
    ratio = _ratio(ours, theirs)
    target = None if ratio is None else 0.8 * about["epochs"] * ratio
    what = f"fit; target 80 % of {about['epochs']} x the engines' ratio"
    engine = next((run["chosen"] for run in _select(runs, "imgclf", "engine") if "chosen" in run), "engine")
    forward = Row(fit.job, f"bare forward pass ({engine})", ours.cell, "keras", theirs.cell, ratio)
    return [Row(fit.job, what, fit.ours, fit.peer, fit.theirs, fit.ratio, target), forward]


def _counted_rows(runs: Sequence[Run], about: Run) -> list[Row]:
    distinct = sum(about["distinct"].values())
    forwards = next((run.get("forwards") for run in runs), None)
    failed = next((f"failed: {run['failed']}" for run in runs if "failed" in run), "-")
    ours, ratio = (failed, None) if forwards is None else (f"{forwards:,}", forwards / distinct)
    what = "images through the frozen part"
    return [Row("asl_vgg16_counted", what, ours, "distinct images", f"{distinct:,}", ratio, 1.0, at_most=True)]


def _predict_rows(runs: Sequence[Run], about: Run) -> list[Row]:
    keras, rows = _side(runs, "images/s", "keras", "fp32"), []
    for precision, target in (("fp32", 2.0), ("bf16", 4.0)):
        ours, what = _side(runs, "images/s", "imgclf", precision), f"MobileNetV2 @224 from JPEG, {precision}"
        rows.append(Row("predict_throughput", what, ours.cell, "keras", keras.cell, _ratio(ours, keras), target))
    return rows


def _memory_rows(runs: Sequence[Run], about: Run) -> list[Row]:
    rows = []
    for name in ("frozen", "trained"):
        once, four = (_side(runs, "anonymous", "imgclf", f"{name} {times}x") for times in (1, 4))
        sides = (four.cell, "a quarter of the images", once.cell)
        rows.append(Row("memory", f"peak anonymous, {name}", *sides, _ratio(four, once), 1.1, at_most=True))
    return rows


def _pipeline_rows(runs: Sequence[Run], about: Run) -> list[Row]:
    ours, theirs = (_side(runs, "images/s", who) for who in ("imgclf", "torchvision"))
    what = "augmented @224, one core, cached"
    return [Row("input_pipeline", what, ours.cell, "torchvision", theirs.cell, _ratio(ours, theirs), 3.0)]


def _startup_rows(runs: Sequence[Run], about: Run) -> list[Row]:
    torch, rows = _side(runs, "whole", "imgclf", "import torch"), []
    for name in (run["variant"] for run in runs if run["variant"] != "import torch"):
        ours = _side(runs, "whole", "imgclf", name)
        if name == "predict one file":
            rows.append(Row("startup", name, ours.cell, "import torch", torch.cell, _ratio(ours, torch)))
        else:
            rows.append(Row("startup", name, ours.cell, "", "", ours.value, 1.0, at_most=True, unit=" s"))
    return rows


def _size_rows(runs: Sequence[Run], about: Run) -> list[Row]:
    rows = []
    for times in (1, 4, 16):
        chosen = [{**run, "variant": "cold"} for run in runs if run["variant"] == f"{times}x"]
        row = _compare("size", chosen, Target("fit", "keras", None))
        rows.append(Row("size", f"fit, {times}x the images", row.ours, row.peer, row.theirs, row.ratio))
    return rows


ROWS: dict[str, Callable[[Sequence[Run], Run], list[Row]]] = {
    "vgg16_frozen": _vgg16_rows,
    "asl_vgg16_counted": _counted_rows,
    "predict_throughput": _predict_rows,
    "memory": _memory_rows,
    "input_pipeline": _pipeline_rows,
    "startup": _startup_rows,
    "size": _size_rows,
}


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield _line("job", "what", "imgclf", "peer", "the peer's figure", "ratio", "target", "result")
    yield _line(*["---"] * 8)
    yield from (_line(*row.cells()) for row in rows)


def _sides(jobs: Run) -> Iterator[str]:
    """Yield one row for each side of each training job: seconds, images/s, memory."""
    times = ("fit", "whole", "first epoch", "later epochs")
    yield _line("job", "who", "caches", "runs", *times, "images/s", "peak anonymous", "peak resident")
    yield _line(*["---"] * 11)
    for name, result in jobs.items():
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in result.get("runs", []):
            if "failed" not in run and "fit_seconds" in run and "anonymous_mib" in run:
                groups.setdefault((run["who"], run["variant"]), []).append(run)
        for (who, variant), runs in groups.items():
            cells = [f"{median(run[key] for run in runs):.2f} s" for key in ("fit_seconds", "wall_seconds")]
            cells.append(f"{median(run['epoch_seconds'][0] for run in runs):.2f} s")
            later = [seconds for run in runs for seconds in run["epoch_seconds"][1:]]
            cells.append(f"{median(later):.2f} s" if later else "-")
            cells.append(f"{median(run['images_per_second'] for run in runs):,.0f}")
            cells += [_mib(median(run[key] for run in runs)) for key in ("anonymous_mib", "resident_mib")]
            yield _line(f"`{name}`", who, variant, str(len(runs)), *cells)


def _line(*cells: str) -> str:
    if set(cells) == {"---"}:
        return f"|{'|'.join(cells)}|"
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


# The plots.


def _plot_size(runs: Sequence[Run], path: Path) -> bool:
    """Draw seconds of `fit` against images, both axes logarithmic; returns False if there is nothing to draw."""
    good = [run for run in runs if "times" in run and "failed" not in run]
    points = {who: [(run["images"], run["fit_seconds"]) for run in good if run["who"] == who] for who in COLOURS}
    epochs = max((run["epochs"] for run in good), default=0)
    return _draw(points, path, "training images", f"seconds of fit, {epochs} epochs", "log")


def _plot_epochs(runs: Sequence[Run], path: Path) -> bool:
    """Draw seconds of `fit` against epochs; Keras's points are computed from the epochs that it ran."""
    good = [run for run in runs if "failed" not in run]
    ours = [(int(run["variant"].split()[0]), run["fit_seconds"]) for run in good if run["variant"].endswith("epochs")]
    points: dict[str, list[tuple[float, float]]] = {"imgclf": ours, "keras": []}
    keras = next((run for run in good if run["who"] == "keras" and run.get("times") == 1), None)
    if keras:
        first, later = keras["epoch_seconds"][0], sorted(keras["epoch_seconds"][1:] or keras["epoch_seconds"])
        points["keras"] = [(epochs, first + (epochs - 1) * later[len(later) // 2]) for epochs, _ in ours]
    return _draw(points, path, "epochs", "seconds of fit", "linear")


def _draw(points: Points, path: Path, across: str, up: str, scale: str) -> bool:
    if not any(points.values()):
        return False
    import matplotlib  # here, because --help needs none of it

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    above: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center", "fontsize": 8}
    for who, values in points.items():
        for x, y in values:
            axes.annotate(f"{y:.3g}" if y < 100 else f"{y:,.0f}", (x, y), color=COLOURS[who], **above)
        if values:
            x_values, y_values = zip(*sorted(values), strict=True)
            axes.plot(x_values, y_values, marker="o", color=COLOURS[who], label=LABELS[who], linewidth=2)
    axes.set(xscale=scale, yscale="log", xlabel=across, ylabel=up)
    axes.xaxis.set_major_locator(FixedLocator(sorted({x for values in points.values() for x, _ in values})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.margins(x=0.08, y=0.12)
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return True
