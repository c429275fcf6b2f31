"""Measure the cost per image of each stage, and extrapolate it to 1.3 million and to a billion images.

    python scripts/bench/scale.py --data <sports folder> --weights <mobilenetv2 safetensors> --page docs/scale.md --date DATE

Medians of five after one to warm up. The tables are written between the page's markers; the text around them stays.
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

from imgclf.config import CacheConfig, ModelConfig, RunConfig, SchedulerConfig
from imgclf.data.datasets import SportsDataModule
from imgclf.data.folders import list_images
from imgclf.data.manifest import fingerprint
from imgclf.data.pixel_cache import pixel_cache
from imgclf.data.samples import Samples
from imgclf.evaluation.evaluate import build_forward, evaluate_split
from imgclf.files.atomic import write_atomically
from imgclf.files.run_folder import describe_environment
from imgclf.images import read_image
from imgclf.malloc import tune_malloc
from imgclf.threads import available_cpus, prefetch_map
from imgclf.training.build import build_classifier

SIZE = 224
ROW = SIZE * SIZE * 3
REPEATS = 5
FEATURES = 4 * 1280  # bytes: float32 of MobileNetV2's last map, pooled
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> None:
    """Measure every stage, and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--date", required=True)
    options = parser.parse_args()
    tune_malloc()  # as `imgclf train` does
    with tempfile.TemporaryDirectory() as name:
        os.environ["IMGCLF_CACHE"] = name
        rows = measure_stages(options.data, options.weights, Path(name))
    tables = "\n".join([f"Measured on {options.date}: {machine()}.", "", *stage_table(rows), "", *scale_table(rows)])
    text = options.page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    write_atomically(options.page, f"{before}{BEGIN}\n{tables}\n{END}{after}")
    print(tables)


def seconds_of(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the median wall time of `function`, after one call to warm up."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return median(times)


def measure_stages(root: Path, weights: Path, folder: Path) -> dict[str, float]:
    """Return seconds per image of each stage, and bytes."""
    data = SportsDataModule(root, check_counts=False, num_workers=0)
    data.setup()
    model = ModelConfig(backbone="mobilenetv2_100", weights=str(weights))
    classifier = build_classifier(RunConfig(image_size=SIZE, model=model, scheduler=SchedulerConfig("none")), data)
    samples, preprocess = data.samples["train"], data.preprocess
    items, count = samples.items, len(samples)
    rows: dict[str, float] = {"file": sum(Path(item).stat().st_size for item in items) / count}
    folders = sorted({Path(item).parent for item in items})
    rows["list"] = seconds_of(lambda: ([list_images(path) for path in folders], fingerprint(samples))) / count

    def decode(item: Any) -> Any:
        return read_image(item, preprocess)

    rows["decode"] = seconds_of(lambda: list(prefetch_map(decode, items, 2 * available_cpus()))) / count
    rows["decode1"] = seconds_of(lambda: [decode(item) for item in items]) / count
    shard = write_shard(items, folder)
    rows["shard"] = seconds_of(lambda: read_shard(shard, preprocess)) / count

    def fill() -> Any:
        cache = pixel_cache(samples, preprocess, CacheConfig("disk"), (f"fill-{time.monotonic_ns()}", root), 300)
        cache.prepare(np.arange(count))
        return cache

    rows["fill"] = seconds_of(fill) / count
    cache = fill()
    parts = np.array_split(np.random.default_rng(0).permutation(count), count // 32)
    rows["read"] = seconds_of(lambda: [cache.rows.take(cache.numbers[part]) for part in parts]) / count
    images = torch.from_numpy(cache.rows.take(cache.numbers[np.arange(256)])).permute(0, 3, 1, 2)
    classifier.eval()
    for engine in ("eager", "openvino"):
        forward = build_forward(classifier.eval_model, engine, 10**6)
        with torch.inference_mode():
            rows[engine] = seconds_of(lambda forward=forward: [forward(part) for part in images.split(32)]) / 256
    loader = data.loader("train")
    forward = build_forward(classifier.eval_model, "openvino", 10**6)
    rows["evaluate"] = seconds_of(lambda: evaluate_split(classifier.eval_model, loader, None, forward)) / count
    rows["train"] = train_step(classifier, images[:32]) / 32
    rows["head"] = head_step() / 32
    rows["gradient"] = 4.0 * sum(p.numel() for p in classifier.network.parameters())
    rows["allreduce"] = all_reduce(int(rows["gradient"] // 4))
    rows["sample"] = memory_of("samples")
    rows["index"] = memory_of("index")
    rows["order"] = seconds_of(lambda: np.random.default_rng(0).permutation(1_300_000)) / 1_300_000
    return rows


def write_shard(items: tuple[str, ...], folder: Path) -> Path:
    """Write the images into one tar, as WebDataset stores them."""
    path = folder / "shard.tar"
    with tarfile.open(path, "w") as shard:
        for number, item in enumerate(items):
            shard.add(item, f"{number:06}.jpg")
    return path


def read_shard(path: Path, preprocess: Any) -> None:
    """Decode a shard from start to end."""
    with tarfile.open(path) as shard:
        bodies = (io.BytesIO(shard.extractfile(member).read()).getvalue() for member in shard)  # type: ignore[union-attr]
        for _ in prefetch_map(lambda body: read_image(body, preprocess), bodies, 2 * available_cpus()):
            pass


def train_step(classifier: Any, images: torch.Tensor) -> float:
    """Return the seconds of one update of MobileNetV2 on a batch of 32."""
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
    """Return the seconds of one update of a head of 100 classes on a batch of 32 features."""
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
    """Return the seconds to sum `count` float32 over two processes of this machine (gloo, loopback)."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands = [[sys.executable, "-c", ALL_REDUCE, str(rank), str(count), port] for rank in (0, 1)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    texts = [process.communicate()[0] for process in processes]
    return float(texts[0])


def memory_of(what: str) -> float:
    """Return the bytes of memory per image of `what`, held for 1.3 million images by a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import scale; scale.hold({what!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def hold(what: str, count: int = 1_300_000) -> None:
    """Print the bytes per image of the samples, or of a store's index."""
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
    """Return the bytes of memory that this process holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024.0 * int(line.split()[1])


def machine() -> str:
    """Return the machine and the versions, in words."""
    environment = describe_environment()
    packages = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "timm"))
    hardware = f"{environment['processor']}, {environment['cores']} cores"
    return f"{hardware}, Python {platform.python_version()}, {packages}; no GPU"


def stage_table(rows: dict[str, float]) -> list[str]:
    """Return one row per stage: the measured figures."""
    network = "MobileNetV2 at 224, batches of 32"
    stages = (
        ("find and fingerprint", "list", rows["file"], "files by name, size and time"),
        ("decode, all cores", "decode", rows["file"], f"JPEG files of {rows['file'] / 1e3:.0f} kB, in the page cache"),
        ("decode, one core", "decode1", rows["file"], "the same"),
        ("decode from a tar shard, all cores", "shard", rows["file"], "the same, read from start to end"),
        ("decode and cache", "fill", ROW, f"uint8 rows of {ROW / 1e3:.1f} kB, synced to disk"),
        ("read cached images in random order", "read", ROW, "the same, from the page cache"),
        ("forward, PyTorch", "eager", ROW, network),
        ("forward, OpenVINO", "openvino", ROW, "the same"),
        ("evaluate", "evaluate", ROW, "cached images, OpenVINO, metrics"),
        ("train everything", "train", ROW, f"{network}, forward, backward and AdamW"),
        ("train the head on features", "head", FEATURES, f"rows of {FEATURES / 1e3:.1f} kB, 100 classes"),
    )
    table = ["| stage | ms per image | images per second | seconds per GB | measured on |", "|---|---|---|---|---|"]
    for stage, key, size, note in stages:
        seconds = rows[key]
        cells = (stage, f"{1e3 * seconds:.3g}", f"{1 / seconds:,.0f}", f"{seconds / size * 1e9:,.3g}", note)
        table.append(f"| {' | '.join(cells)} |")
    gradients = f"Two processes sum MobileNetV2's gradients ({rows['gradient'] / 1e6:.1f} MB) in {1e3 * rows['allreduce']:.0f} ms"
    memory = f"{rows['sample']:.0f} B of file name and label in each process, {rows['index']:.0f} B of a store's index"
    order = f"the order of an epoch takes {1e9 * rows['order']:.0f} ns and 8 B"
    return [*table, "", f"{gradients} (gloo, loopback). Memory per image: {memory}; {order}."]


def hours(seconds: float) -> str:
    """Return a duration in minutes, hours or days."""
    if seconds < 5400:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.0f} days"


def gigabytes(count: float) -> str:
    """Return a number of bytes in GB or TB."""
    return f"{count / 1e9:,.1f} GB" if count < 1e12 else f"{count / 1e12:,.1f} TB"


def scale_table(rows: dict[str, float]) -> list[str]:
    """Return the costs of more images by the figures above, all of them extrapolated."""
    counts = {"1.3 million images": 1.3e6, "1 billion images": 1e9}
    step = rows["train"] + rows["read"]
    # Of one image of ten epochs on 64 machines: each step of 32 images sums the gradients once around the ring.
    ring = 10 / 64 * rows["train"] + 10 / (64 * 32) * 2 * rows["allreduce"]
    costs = {
        "files": (gigabytes, rows["file"]),
        "cached images": (gigabytes, ROW),
        "cached features": (gigabytes, FEATURES),
        "memory for names and labels, each process": (gigabytes, rows["sample"]),
        "memory for one store's index": (gigabytes, rows["index"]),
        "find and fingerprint": (hours, rows["list"]),
        "decode and cache, once": (hours, rows["fill"]),
        "frozen: features by OpenVINO, once": (hours, rows["openvino"]),
        "frozen: ten epochs of the head": (hours, 10 * rows["head"]),
        "everything: ten epochs": (hours, 10 * step),
        "evaluate": (hours, rows["evaluate"]),
        "everything: ten epochs on 64 such machines, gradients summed in a ring*": (hours, ring),
    }
    lines = [
        f"| {name} | {' | '.join(write(each * count) for count in counts.values())} |"
        for name, (write, each) in costs.items()
    ]
    return [
        "All figures of the next table are **extrapolated** linearly from the one above, for this machine.",
        "",
        f"| cost | {' | '.join(counts)} |",
        "|---|---|---|",
        *lines,
        "",
        "*A ring moves twice the gradients for any number of machines; a network as fast as this loopback is assumed.",
    ]


if __name__ == "__main__":
    main()
