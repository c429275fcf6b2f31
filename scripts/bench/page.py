"""`python scripts/bench/page.py results.json docs/speed.md`: the results as a page and two plots beside it."""

import argparse
import json
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from jobs import JOBS, Fit
from matplotlib.figure import Figure

PEERS = {"keras": "Keras", "fastai": "fastai", "timm": "timm and a loop", "lightning": "Lightning, ImageFolder"}


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--date", default=str(date.today()))
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    text = [
        HEAD.format(date=options.date, hardware=hardware(), versions=versions(results)),
        *fits(results),
        *others(results),
    ]
    growth = results.get("growth", {})
    if "size" in growth:
        plot(growth["size"], None, "times the pictures", options.page.with_name("speed_size.png"))
        keras = results.get("sports_frozen", {}).get("keras")
        plot(growth["epochs"], keras, "epochs", options.page.with_name("speed_epochs.png"))
        text += ["![Seconds of the frozen job against the number of pictures](speed_size.png)",
                 "![Seconds of the frozen job against the number of epochs](speed_epochs.png)"]  # fmt: skip
    options.page.write_text("\n\n".join(text) + "\n")


HEAD = """# Speed

Written by `scripts/bench/page.py` from what `scripts/bench/compare.py` measured on {date}, on {hardware}; {versions}. The
machine is a virtual one, and its speed drifts: ratios hold better than seconds. imgclf's figures are medians of the runs
named, its caches empty ("cold") or filled by the run before ("warm"); the peers ran the same pictures, splits, batches and
networks from random weights in the same series. Where a peer ran fewer epochs, the rest is added at the pace of those after
its first, and the cell says of how many. "Fit" is training with validation; "whole" is the process from start to end, with
imports and, for imgclf alone, the test of the best epoch. Memory is the anonymous memory of the process and its children."""


def fits(results: dict[str, Any]) -> list[str]:
    """The table of the training jobs."""
    rows = ["## Training", "| job | imgclf | peer | ratio | target |\n|---|---|---|---|---|"]
    for name, fit in JOBS.items():
        result = results.get(name)
        if result is None or "failed" in result:
            rows[-1] += f"\n| {name} | {'not measured' if result is None else result['failed']} | | | {fit.target:g}x |"
            continue
        for line in lines_of(name, fit, result, results):
            rows[-1] += "\n| " + " | ".join(line) + " |"
    return rows


def lines_of(name: str, fit: Fit, result: dict[str, Any], results: dict[str, Any]) -> list[list[str]]:
    """The rows of one job."""
    lines = []
    runs = f" ({len(result['cold'])} runs)"
    cold = median(run["fit"] for run in result["cold"])
    memory = f", {median(run['peak_mib'] for run in result['cold']):,.0f} MiB" if result["cold"][0]["peak_mib"] else ""
    for peer, target in {"keras": fit.target, **fit.peers}.items():
        theirs = result[peer]
        if name == "vgg16_frozen":
            target = (
                0.8 * result["epochs"] * results["engines"]["ratio"] if "ratio" in results.get("engines", {}) else None
            )
        peak = f", {theirs['peak_mib']:,.0f} MiB" if theirs["peak_mib"] else ""
        note = f" (from {theirs['ran']} of {result['epochs']} epochs)" if theirs["ran"] < result["epochs"] else ""
        lines.append([f"{name}, {result['epochs']} epochs, fit, cold", f"{cold:.1f} s{runs}{memory}",
                      f"{PEERS[peer]} {theirs['fit']:.1f} s{note}{peak}", *ratio(theirs["fit"] / cold, target)])  # fmt: skip
    if fit.warm:
        for kind, target in (("cold", 8), ("warm", 20)):
            ours = median(run["whole"] for run in result[kind])
            lines.append([f"{name}, whole process, {kind}", f"{ours:.1f} s{runs}", f"Keras {result['keras']['whole']:.1f} s",
                          *ratio(result["keras"]["whole"] / ours, target)])  # fmt: skip
    if fit.steady:
        runs_of = (result["cold"][0]["epoch_seconds"], result["keras"]["epoch_seconds"])
        pace = [median(run[1:] or run) for run in runs_of]
        count = result["counts"]["train"]
        lines.append([f"{name}, behind the first epoch", f"{count / pace[0]:.0f} pictures/s", f"Keras {count / pace[1]:.0f}",
                      *ratio(pace[1] / pace[0], fit.steady)])  # fmt: skip
    return lines


def others(results: dict[str, Any]) -> list[str]:
    """What isn't a training job."""
    rows = []
    if "ratio" in (found := results.get("engines", {})):
        ours, keras = (found[side]["images_per_second"] for side in ("imgclf", "keras"))
        rows.append(["VGG16 @150, forward alone", f"{ours:.1f} pictures/s ({found['imgclf']['versions']['engine']})",
                     f"Keras {keras:.1f}", *ratio(found["ratio"], None)])  # fmt: skip
    if "forwards" in (found := results.get("asl_vgg16_counted", {})):
        verdict = "met" if found["forwards"] <= found["pictures"] else "**not met**"
        rows.append(["asl_vgg16 as it is, forward passes", f"{found['forwards']:,}", f"{found['pictures']:,} pictures",
                     f"{found['forwards'] / found['pictures']:.2f}", f"at most 1, {verdict}"])  # fmt: skip
    if "keras" in (found := results.get("predict_throughput", {})):
        for precision, target in (("fp32", 2), ("bf16", 4)):
            rows.append([f"predict, MobileNetV2 @224 from JPEG, {precision}", f"{found[precision]:.0f} pictures/s",
                         f"Keras {found['keras']:.0f}", *ratio(found[precision] / found["keras"], target)])  # fmt: skip
    if "ratio" in (found := results.get("input_pipeline", {})):
        rows.append(["augmented input, one core, cached", f"{found['imgclf']:.0f} pictures/s",
                     f"torchvision {found['torchvision']:.0f}", *ratio(found["ratio"], 3)])  # fmt: skip
    for name in ("frozen", "trained"):
        if name in (found := results.get("memory", {})):
            one, four = found[name]["peak_mib"]
            verdict = "met" if found[name]["ratio"] <= 1.1 else "**not met**"
            rows.append([f"peak memory, {name}, 4x the pictures", f"{four:,.0f} MiB", f"1x: {one:,.0f} MiB",
                         f"{found[name]['ratio']:.2f}", f"at most 1.1, {verdict}"])  # fmt: skip
    for name, seconds in results.get("startup", {}).items():
        aim = "below 1 s" if name in ("help", "wrong override", "missing folder") else ""
        verdict = f", {'met' if seconds < 1 else '**not met**'}" if aim else ""
        rows.append([f"start-up: {name}", f"{seconds:.2f} s", "", "", aim + verdict])
    table = "| what | imgclf | beside it | ratio | target |\n|---|---|---|---|---|"
    return ["## Everything else", table + "".join("\n| " + " | ".join(row) + " |" for row in rows)] if rows else []


def ratio(found: float, target: float | None) -> tuple[str, str]:
    """The ratio, and whether it reaches the target."""
    if target is None:
        return f"{found:.2f}x", ""
    return f"{found:.2f}x", f"{target:.3g}x, {'met' if found >= target else '**not met**'}"


def plot(ours: dict[str, float], keras: dict[str, Any] | None, what: str, path: Path) -> None:
    """Seconds against a number, both doubling from line to line."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    numbers = [int(number) for number in ours]
    axes.plot(numbers, list(ours.values()), "o-", label="imgclf, cold", color="#1b6ca8")
    if keras:
        first, pace = keras["epoch_seconds"][0], median(keras["epoch_seconds"][1:] or keras["epoch_seconds"])
        axes.plot(numbers, [first + (n - 1) * pace for n in numbers], "s--", color="#b3541e",
                  label=f"Keras, from {keras['ran']} epochs")  # fmt: skip
    for number, seconds in zip(numbers, ours.values(), strict=True):
        axes.annotate(f"{seconds:.0f} s", (number, seconds), textcoords="offset points", xytext=(0, -14), ha="center")
    axes.set(xscale="log", yscale="log", xlabel=what, ylabel="seconds of fit", xticks=numbers, xticklabels=numbers)
    axes.margins(y=0.2)
    axes.minorticks_off()
    axes.set_title("Frozen MobileNetV2 on the sports pictures", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def hardware() -> str:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    cores = memory = "?"
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
        cores = str(sum(line.startswith("processor") for line in lines))
        flags = next((line for line in lines if line.startswith("flags")), "")
        model += f" ({'with' if 'avx512_bf16' in flags or 'amx_bf16' in flags else 'without'} bf16 instructions)"
        memory = f"{int(Path('/proc/meminfo').read_text().split()[1]) / 2**20:.0f}"
    return f"{cores} cores of {model}, {memory} GiB, no GPU, {platform.system()}"


def versions(results: dict[str, Any]) -> str:
    """Of imgclf's stack, and of the peers as they said themselves."""
    found = {name: version(name) for name in ("torch", "timm", "pytorch-lightning", "openvino")}
    for result in results.values():
        for peer in result.values():
            found |= peer.get("versions", {}) if isinstance(peer, dict) else {}
    found.pop("engine", None)
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {number}" for name, number in found.items())


if __name__ == "__main__":
    main()
