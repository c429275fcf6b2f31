"""The results page in Markdown, from the JSON alone."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from plots import plot_epochs, plot_size
from rows import Row, rows_of

__all__ = ["write_page"]

METHOD = """Every figure comes from one series, in which imgclf and its peers took turns: imgclf ran as often as `runs` says (the
median counts), a peer once, epoch by epoch. All see the same pictures in the same splits (links to imgclf's own), the same
network to the parameter, with random weights, the same batch size, and validate in every epoch on the same pictures; training
data are shuffled. Libraries and pictures were read once before. `fit` is training with its validation; `whole` is the process
from start to exit, with a test of the network and its saving. Cold: an empty cache folder; warm: that of the run before.
images/s are training pictures by the seconds of an epoch (validation included), the median of the epochs behind the first. Peak
memory is what a process and its children hold themselves (RssAnon, read five times a second), without mapped files.

- **imgclf**: its command line, as a user types it, with `report=false`; its defaults otherwise.
- **keras**: `image_dataset_from_directory` (bilinear), prefetch, `fit` with `jit_compile="auto"`; no `cache()`. Augmentation by
  Keras's layers, mapped over batches in parallel. oneDNN is switched on (`TF_ENABLE_ONEDNN_OPTS=1`), where TensorFlow would
  leave it out.
- **fastai**: `ImageDataLoaders.from_folder`, a `Learner` on the same network, its own number of workers.
- **timm_loop**: a loop like timm's train.py on timm's loader, with its `--channels-last`, two workers.
- **lightning_plain**: `ImageFolder`, a `DataLoader` with two workers, stock settings (no channels_last).

No peer's allocator was tuned."""


def write_page(results: dict[str, Any], path: Path, date: str | None) -> None:
    """Write the page to `path`, and the plots `<stem>_size.png` and `<stem>_epochs.png` beside it."""
    meta, jobs = results["meta"], results["jobs"]
    rows = [row for name, result in jobs.items() for row in rows_of(name, result)]
    parts = ["# Speed", "", f"Measured {date or meta['date']}{_quick(jobs)}. {_machine(meta)}", "",
             f"Versions: {_versions(meta, jobs)}.", "", METHOD, "",
             "[speed_limits.md](speed_limits.md) says what stands in the way where a target isn't met.", "",
             "## Against the peers", "", *_table(rows), "",
             "A ratio above 1 is in imgclf's favour, but for rows that say `at most`.", "",
             "## Each side by itself", "", *_sides(jobs)]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = jobs.get("size", {}).get("runs", [])
    size, epochs = (path.with_name(f"{path.stem}_{what}.png") for what in ("size", "epochs"))
    if plot_size(runs, size):
        parts += ["", "## More pictures", "", "The frozen job on one, four and sixteen copies of its pictures.", "",
                  f"![Seconds of fit against training pictures]({size.name})"]  # fmt: skip
    if plot_epochs(runs, epochs):
        parts += ["", "## More epochs", "", "The same job; Keras's points follow from its measured epochs.", "",
                  f"![Seconds of fit against epochs]({epochs.name})"]  # fmt: skip
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _machine(meta: dict[str, Any]) -> str:
    system = meta["platform"].partition("-")[0]
    return (f"{meta['processor']}, {meta['cores']} cores, {meta['memory_gib']} GiB of memory, {system}, "
            f"Python {meta['python']}; imgclf at commit {(meta['git_commit'] or 'unknown')[:12]}.")  # fmt: skip


def _quick(jobs: dict[str, Any]) -> str:
    """Jobs of toy size are no measurement, and the page says so."""
    toys = [name for name, result in jobs.items() if result.get("quick")]
    return f" (**toy sizes, no measurement**: {', '.join(toys)})" if toys else ""


def _versions(meta: dict[str, Any], jobs: dict[str, Any]) -> str:
    sides = {"imgclf": {name: version for name, version in meta["versions"].items() if version}}
    for result in jobs.values():
        for run in result.get("runs", []):
            if "versions" in run:
                sides.setdefault(run["who"], run["versions"])
    return "; ".join(
        f"{who}: {', '.join(f'{name} {version}' for name, version in found.items())}" for who, found in sides.items()
    )


def _table(rows: list[Row]) -> Iterator[str]:
    yield "| job | what | imgclf | peer | | ratio | target | |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}{row.unit}"
        target = "" if row.target is None else f"{'at most' if row.at_most else 'at least'} {row.target:.3g}{row.unit}"
        cells = (f"`{row.job}`", row.what, row.ours, row.peer, row.theirs, ratio, target, row.met)
        yield f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _sides(jobs: dict[str, Any]) -> Iterator[str]:
    """A line for each side of each training job: seconds, images/s, memory."""
    yield "| job | who | caches | runs | fit | whole | first epoch | later epochs | images/s | peak anonymous | peak resident |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for name, result in jobs.items():
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for run in result.get("runs", []):
            if "failed" not in run and "fit_seconds" in run and "anonymous_mib" in run:
                groups.setdefault((run["who"], run["variant"]), []).append(run)
        for (who, variant), runs in groups.items():
            fit, whole, rate, own, resident = (
                median(run[key] for run in runs)
                for key in ("fit_seconds", "wall_seconds", "images_per_second", "anonymous_mib", "resident_mib")
            )
            first = median(run["epoch_seconds"][0] for run in runs)
            later = [seconds for run in runs for seconds in run["epoch_seconds"][1:]]
            yield (f"| `{name}` | {who} | {variant} | {len(runs)} | {fit:.2f} s | {whole:.2f} s | {first:.2f} s | "
                   f"{f'{median(later):.2f} s' if later else '-'} | {rate:,.0f} | {own:,.0f} MiB | "
                   f"{resident:,.0f} MiB |")  # fmt: skip


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
