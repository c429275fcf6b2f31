"""What a picture costs at each stage, measured here, and what 1.3 million and a billion would cost by that.

    python scripts/bench/scale.py --data <sports folder> --weights <mobilenetv2 safetensors> --page docs/scale.md --date DATE

Medians of five after one to warm up. The page's tables are written between its markers; the prose around them is not touched.
"""

import argparse
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from imgclf.cli.malloc import tune_malloc
from imgclf.data import datamodule_class
from imgclf.data.layouts import list_images
from imgclf.data.manifest import fingerprint
from imgclf.data.pixel_cache import CacheConfig, pixel_cache
from imgclf.data.samples import Samples
from imgclf.evaluation.evaluate import build_forward, evaluate_split
from imgclf.files.atomic import write_atomically
from imgclf.files.run_folder import describe_environment
from imgclf.images import read_image
from imgclf.threads import available_cpus, prefetch_map
from imgclf.training.build import build_classifier

SIZE = 224
ROW = SIZE * SIZE * 3
REPEATS = 5
SETTINGS: dict[str, Any] = {
    "model": {"backbone": "mobilenetv2_100", "head": {}}, "image_size": SIZE, "resize": "squash", "seed": 0,
    "optimizer": {"name": "adamw", "lr": 1e-3}, "scheduler": {"name": "none"}, "loss": {}, "mixing": {}, "ema_decay": None,
    "checkpoint": {"monitor": "val_accuracy"},
}  # fmt: skip
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> None:
    """Measure, and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--date", required=True)
    options = parser.parse_args()
    tune_malloc()  # as `imgclf.train` does
    with tempfile.TemporaryDirectory() as name:
        os.environ["IMGCLF_CACHE"] = name
        rows = compute_metrics(options.data, options.weights, Path(name))
    tables = "\n".join([f"Measured on {options.date}: {where()}.", "", *stage_table(rows), "", *scale_table(rows)])
    text = options.page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    write_atomically(options.page, f"{before}{BEGIN}\n{tables}\n{END}{after}")
    print(tables)


def seconds_of(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median wall time of `function`, warmed up once."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return median(times)


def compute_metrics(root: Path, weights: Path, place: Path) -> dict[str, float]:
    """Seconds a picture at each stage, and bytes."""
    data = datamodule_class("sports")(
        root, name="sports", check_counts=False, augment=None, num_workers=0, cache="disk"
    )
    data.setup()
    classifier = build_classifier({**SETTINGS, "model": {**SETTINGS["model"], "weights": str(weights)}}, data)
    samples, preprocess = data.samples["train"], data.preprocess
    items, count = samples.items, len(samples)
    rows: dict[str, float] = {"file": sum(Path(item).stat().st_size for item in items) / count}
    folders = sorted({Path(item).parent for item in items})
    rows["list"] = seconds_of(lambda: ([list_images(folder) for folder in folders], fingerprint(samples))) / count
    rows["decode"] = (
        seconds_of(lambda: list(prefetch_map(lambda item: read_image(item, preprocess), items, 2 * available_cpus())))
        / count
    )
    rows["decode1"] = seconds_of(lambda: [read_image(item, preprocess) for item in items]) / count
    rows["shard"] = seconds_of(lambda: read_shard(shard_of(items, place), preprocess)) / count

    def fill() -> Any:
        made = pixel_cache(samples, preprocess, CacheConfig("disk"), f"fill-{time.monotonic_ns()}", root, 300)
        made.prepare(np.arange(count))
        return made

    rows["fill"] = seconds_of(fill) / count
    kept = fill()
    parts = np.array_split(np.random.default_rng(0).permutation(count), count // 32)
    rows["read"] = seconds_of(lambda: [kept.rows.take(kept.numbers[part]) for part in parts]) / count
    images = torch.from_numpy(kept.rows.take(kept.numbers[np.arange(256)])).permute(0, 3, 1, 2)
    classifier.eval()
    for engine in ("eager", "openvino"):
        answer = build_forward(classifier.eval_model, engine, 10**6)
        with torch.inference_mode():
            rows[engine] = seconds_of(lambda answer=answer: [answer(part) for part in images.split(32)]) / 256
    loader = data.loader("train")
    answer = build_forward(classifier.eval_model, "openvino", 10**6)
    rows["evaluate"] = seconds_of(lambda: evaluate_split(classifier.eval_model, loader, None, answer)) / count
    rows["train"] = train_step(classifier, images[:32]) / 32
    rows["head"] = head_step() / 32
    rows["gradient"] = 4.0 * sum(p.numel() for p in classifier.network.parameters())
    rows["allreduce"] = all_reduce(int(rows["gradient"] // 4))
    rows["sample"] = memory_of("samples")
    rows["index"] = memory_of("index")
    rows["order"] = seconds_of(lambda: np.random.default_rng(0).permutation(1_300_000)) / 1_300_000
    return rows


def shard_of(items: tuple[str, ...], place: Path) -> Path:
    """The pictures in one tar, as webdataset keeps them."""
    path = place / "shard.tar"
    if not path.exists():
        with tarfile.open(path, "w") as shard:
            for number, item in enumerate(items):
                shard.add(item, f"{number:06}.jpg")
    return path


def read_shard(path: Path, preprocess: Any) -> None:
    """Decode a shard from its beginning to its end."""
    with tarfile.open(path) as shard:
        bodies = (io.BytesIO(shard.extractfile(member).read()).getvalue() for member in shard)  # type: ignore[union-attr]
        for _ in prefetch_map(lambda body: read_image(body, preprocess), bodies, 2 * available_cpus()):
            pass


def train_step(classifier: Any, images: torch.Tensor) -> float:
    """A whole update of MobileNetV2 on a batch of 32, in seconds."""
    classifier.train()
    optimizer = classifier.configure_optimizers()
    targets = torch.arange(len(images)) % len(classifier.classes)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(classifier(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return seconds_of(step)


def head_step() -> float:
    """An update of a head of 100 classes on a batch of 32 features, in seconds."""
    head = torch.nn.Linear(1280, 100)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)
    features, targets = torch.randn(32, 1280), torch.arange(32)

    def step() -> None:
        for _ in range(100):
            loss = torch.nn.functional.cross_entropy(head(features), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return seconds_of(step) / 100


ALL_REDUCE = """
import os, sys, time, torch, torch.distributed as dist
from statistics import median
rank, count = int(sys.argv[1]), int(sys.argv[2])
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3], RANK=str(rank), WORLD_SIZE="2")
torch.set_num_threads(1)
dist.init_process_group("gloo")
values, times = torch.ones(count), []
for _ in range(12):
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(values)
    times.append(time.perf_counter() - began)
if rank == 0:
    print(median(times[2:]))
"""


def all_reduce(count: int) -> float:
    """Seconds to sum so many float32 over two processes of this machine (gloo, loopback)."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ALL_REDUCE, str(rank), str(count), port], stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    return float(processes[0].communicate()[0]) + 0 * processes[1].wait()


def memory_of(what: str) -> float:
    """Bytes of memory a picture for what is held of every one: a process of its own holds 1.3 million."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import scale; scale.hold({what!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def hold(what: str, count: int = 1_300_000) -> None:
    """Print how many bytes a picture the samples, or a store's index, take."""
    before = resident()
    if what == "samples":
        names = tuple(
            f"/data/imagenet/train/n{number % 1000:08}/n{number % 1000:08}_{number:07}.JPEG" for number in range(count)
        )
        held: Any = Samples(names, np.arange(count) % 1000, tuple(map(str, range(1000))))
    else:
        held = {os.urandom(16): number for number in range(count)}, [number * 3_000 for number in range(count)]
    print((resident() - before) / count)
    del held


def resident() -> float:
    """Bytes of memory that this process holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024.0 * int(line.split()[1])


def where() -> str:
    """The machine, in words."""
    facts = describe_environment()
    packages = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "timm"))
    return f"{facts['processor']}, {facts['cores']} cores, Python {platform.python_version()}, {packages}; no GPU"


def stage_table(rows: dict[str, float]) -> list[str]:
    """A row a stage: what was measured."""

    def line(stage: str, key: str, size: float, note: str) -> str:
        per_gigabyte = rows[key] / size * 1e9
        return f"| {stage} | {1e3 * rows[key]:.3g} | {1 / rows[key]:,.0f} | {per_gigabyte:,.3g} | {note} |"

    feature = 4 * 1280
    return [
        "| stage | ms a picture | pictures a second | seconds a GB | of what |", "|---|---|---|---|---|",
        line("find and fingerprint", "list", rows["file"], "files by name, size and time"),
        line("decode, all cores", "decode", rows["file"], f"JPEG files of {rows['file'] / 1e3:.0f} kB, in the page cache"),
        line("decode, one core", "decode1", rows["file"], "the same"),
        line("decode from a tar shard, all cores", "shard", rows["file"], "the same, read from end to end"),
        line("decode and keep", "fill", ROW, f"uint8 rows of {ROW / 1e3:.1f} kB, synced to disk"),
        line("read what is kept, at random", "read", ROW, "the same, from the page cache"),
        line("forward, PyTorch", "eager", ROW, "MobileNetV2 at 224, batches of 32"),
        line("forward, OpenVINO", "openvino", ROW, "the same"),
        line("evaluate", "evaluate", ROW, "kept rows, OpenVINO, metrics"),
        line("train everything", "train", ROW, "MobileNetV2 at 224, batches of 32, forward, backward and AdamW"),
        line("train the head on features", "head", feature, f"rows of {feature / 1e3:.1f} kB, 100 classes"),
        "",
        f"Two processes sum MobileNetV2's gradients ({rows['gradient'] / 1e6:.1f} MB) in {1e3 * rows['allreduce']:.0f} ms "
        f"(gloo, loopback). Held in memory a picture: {rows['sample']:.0f} B of file name and label in each process, "
        f"{rows['index']:.0f} B of a store's index; the order of an epoch takes {1e9 * rows['order']:.0f} ns and 8 B.",
    ]  # fmt: skip


def scale_table(rows: dict[str, float]) -> list[str]:
    """What so many pictures would cost, by the figures above: extrapolated, all of it."""
    counts = {"1.3 million": 1.3e6, "1 billion": 1e9}

    def hours(seconds: float) -> str:
        if seconds < 5400:
            return f"{seconds / 60:,.0f} min"
        return f"{seconds / 3600:,.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.0f} days"

    def size(count: float) -> str:
        return f"{count / 1e9:,.1f} GB" if count < 1e12 else f"{count / 1e12:,.1f} TB"

    lines = {
        "files": lambda n: size(rows["file"] * n),
        "kept pixels": lambda n: size(ROW * n),
        "kept features": lambda n: size(4 * 1280 * n),
        "memory for names and labels, each process": lambda n: size(rows["sample"] * n),
        "memory for one store's index": lambda n: size(rows["index"] * n),
        "find and fingerprint": lambda n: hours(rows["list"] * n),
        "decode and keep, once": lambda n: hours(rows["fill"] * n),
        "frozen: features by OpenVINO, once": lambda n: hours(rows["openvino"] * n),
        "frozen: ten epochs of the head": lambda n: hours(10 * rows["head"] * n),
        "everything: ten epochs": lambda n: hours(10 * (rows["train"] + rows["read"]) * n),
        "evaluate": lambda n: hours(rows["evaluate"] * n),
        "everything: ten epochs on 64 such machines, gradients summed in a ring*": lambda n: hours(
            10 * n / 64 * rows["train"] + 10 * n / (64 * 32) * 2 * rows["allreduce"]
        ),
    }
    return [
        "All of the next table is **extrapolated** from the one above, linearly, to this machine.", "",
        f"| | {' | '.join(counts)} |", "|---|---|---|",
        *(f"| {name} | {' | '.join(said(n) for n in counts.values())} |" for name, said in lines.items()), "",
        "*A ring moves twice the gradients whatever the number of machines; a network as fast as this loopback is assumed.",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
