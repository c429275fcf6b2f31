"""The jobs that are more than a training run: counted forward passes, engines, prediction, memory, input, start-up, size."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench import HERE, Bench, Run
from fits import FITS, PLAIN, Fit, measure_fit
from measure import run
from presets import copies, flat_copies

__all__ = ["OTHERS"]

FROZEN = "sports_mobilenetv2_frozen"
WHOLE_EPOCHS = ("trainer.limit_train_batches=null", "trainer.limit_val_batches=null")


def vgg16_frozen(bench: Bench) -> dict[str, Any]:
    """The frozen VGG16 over whole epochs, and the bare forward pass of both sides' engines on the same number of pictures."""
    result = measure_fit(bench, Fit("asl_vgg16", WHOLE_EPOCHS, ("keras",), ()))
    size, count = result["about"]["image_size"], 32 if bench.quick else 256
    job = bench_job(bench, "asl_vgg16", WHOLE_EPOCHS)
    shown = {"backbone": job["model"]["backbone"], "image_size": size, "count": count, "pictures": job["pictures"]}
    command = [sys.executable, str(HERE / "engines.py"), json.dumps(shown)]
    for _ in range(bench.repeats):
        result["runs"] += [
            bench.guarded("imgclf", "engine", lambda: {"who": "imgclf", "variant": "engine", **run(command).answer()}),
            bench.guarded("keras", "engine", lambda: {
                **bench.peer("keras", job, task="predict_array", count=count), "variant": "engine"}),
        ]  # fmt: skip
    return result


def asl_vgg16_counted(bench: Bench) -> dict[str, Any]:
    """The preset as it is: pictures through the frozen part, beside the distinct pictures of the run."""
    overrides = bench.overrides("asl_vgg16")
    job = bench_job(bench, "asl_vgg16")
    counts = {split: len(list(Path(job["root"]).glob(f"{split}/*/*"))) for split in ("train", "val", "test")}
    runs = [
        bench.guarded("imgclf", "cold", lambda: bench.imgclf(overrides, bench.new("cache"), job["pictures"], "cold"))
    ]
    return {"about": {"distinct": counts}, "runs": runs}


def predict_throughput(bench: Bench) -> dict[str, Any]:
    """n and 3n JPEG files: what 2n of them take is free of start-up."""
    few = 20 if bench.quick else 1000  # from 1000 on imgclf's rule takes its fast engine, for both folders
    checkpoint, job = trained(bench)
    folders = [flat_copies(Path(job["root"]), bench.new("files"), many) for many in (few, 3 * few)]
    runs: list[Run] = []
    for _ in range(bench.repeats):
        for precision in ("fp32", "bf16"):

            def ours(folder: Path, precision: str = precision) -> float:
                return bench.to_dict([sys.executable, "-m", "imgclf.predict", str(checkpoint), str(folder), "--csv",
                                    "--precision", precision]).seconds  # fmt: skip

            runs.append(bench.guarded("imgclf", precision, lambda precision=precision, ours=ours: slope(
                "imgclf", precision, few, *map(ours, folders))))  # fmt: skip
        runs.append(bench.guarded("keras", "fp32", lambda: slope("keras", "fp32", few, *(
            bench.peer("keras", job, task="predict_folder", root=str(folder))["wall_seconds"]
            for folder in folders))))  # fmt: skip
    return {"about": {"pictures": [few, 3 * few]}, "runs": runs}


def slope(who: str, variant: str, few: int, short: float, long: float) -> Run:
    """Pictures/s from the wall seconds for `few` and for three times as many."""
    return {"who": who, "variant": variant, "wall_seconds": [round(short, 3), round(long, 3)],
            "images_per_second": 2 * few / (long - short)}  # fmt: skip


def memory(bench: Bench) -> dict[str, Any]:
    """Peak anonymous memory on the pictures as they are, and on four copies of each."""
    runs: list[Run] = []
    for name, experiment, more in (
        ("frozen", FROZEN, PLAIN),
        ("trained", "cards_mobilenetv3", FITS["cards_v3"].overrides),
    ):
        job = bench_job(bench, experiment, more)
        for times in (1, 4):
            root = copies(Path(job["root"]), bench.new("copies"), times, 2 if bench.quick else None)
            overrides = [*bench.overrides(experiment, more, root), "trainer.max_epochs=2"]
            variant, pictures = f"{name} {times}x", times * job["pictures"]
            runs.append(bench.guarded("imgclf", variant, lambda: bench.imgclf(
                overrides, bench.new("cache"), pictures, variant)))  # noqa: B023, run at once  # fmt: skip
    return {"about": {}, "runs": runs}


def input_pipeline(bench: Bench) -> dict[str, Any]:
    """Augmented batches on one core, from files by torchvision and from imgclf's full pixel cache."""
    job = bench_job(bench, FROZEN, PLAIN)
    root, cache = job["root"], bench.new("cache")
    if bench.quick:
        root = str(copies(Path(root), bench.new("copies"), 1, 2))
    env = {"OMP_NUM_THREADS": "1", "IMGCLF_CACHE": str(cache)}
    runs: list[Run] = []
    for _ in range(bench.repeats):
        for who in ("torchvision", "imgclf"):
            command = [sys.executable, str(HERE / "pipeline.py"), json.dumps({"who": who, "root": root})]
            runs.append(bench.guarded(who, "", lambda who=who, command=command: {
                "who": who, "variant": "", **run(command, env=env).answer()}))  # fmt: skip
    return {"about": {}, "runs": runs}


def startup(bench: Bench) -> dict[str, Any]:
    """Median wall seconds of five, after one that doesn't count."""
    checkpoint, job = trained(bench)
    picture = next(Path(job["root"]).rglob("*.jpg"))
    commands = {
        "train --help": ["-m", "imgclf.train", "--help"],
        "a wrong override": ["-m", "imgclf.train", "nosuchkey=1"],
        "a missing folder": ["-m", "imgclf.train", "data_dir=/nonexistent"],
        "predict one file": ["-m", "imgclf.predict", str(checkpoint), str(picture)],
        "import torch": ["-c", "import torch"],
    }
    runs: list[Run] = []
    for name, words in commands.items():

        def once(words: list[str] = words) -> float:
            return bench.to_dict([sys.executable, *words], may_fail=True).seconds

        def typical(name: str = name, once: Callable[[], float] = once) -> Run:
            seconds = [once() for _ in range(2 if bench.quick else 6)][1:]
            return {"who": "imgclf", "variant": name, "wall_seconds": median(seconds)}

        runs.append(bench.guarded("imgclf", name, typical))
    return {"about": {}, "runs": runs}


def size(bench: Bench) -> dict[str, Any]:
    """The frozen job on 1, 4 and 16 copies of the pictures, and over 1, 5, 10 and 20 epochs; Keras beside it."""
    runs: list[Run] = []
    plain = bench_job(bench, FROZEN, PLAIN)
    for times in (1, 4, 16):
        root = copies(Path(plain["root"]), bench.new("copies"), times, 1 if bench.quick else None)
        overrides = bench.overrides(FROZEN, PLAIN, root)
        job = {**bench.prepare(overrides)}
        for who, run_it in (
            ("imgclf", lambda: bench.imgclf(overrides, bench.new("cache"), job["pictures"], "")),  # noqa: B023, run at once
            ("keras", lambda: bench.peer("keras", job)),  # noqa: B023
        ):
            found = bench.guarded(who, f"{times}x", run_it)
            runs.append({**found, "variant": f"{times}x", "times": times, "pictures": job["pictures"]})
    for epochs in (1, 5, 10, 20):
        overrides = [*bench.overrides(FROZEN, PLAIN), f"trainer.max_epochs={epochs}"]
        found = bench.guarded("imgclf", f"{epochs} epochs", lambda: bench.imgclf(
            overrides, bench.new("cache"), plain["pictures"], ""))  # noqa: B023  # fmt: skip
        runs.append({**found, "variant": f"{epochs} epochs"})
    return {"about": {}, "runs": runs}


def bench_job(bench: Bench, experiment: str, more: tuple[str, ...] = ()) -> Run:
    """What peers are told about a preset."""
    return bench.prepare(bench.overrides(experiment, more))


def trained(bench: Bench) -> tuple[Path, Run]:
    """A checkpoint of the frozen MobileNetV2 after one epoch, and its job."""
    overrides = [*bench.overrides(FROZEN, PLAIN), "trainer.max_epochs=1"]
    job = bench.prepare(overrides)
    found = bench.imgclf(overrides, bench.new("cache"), job["pictures"], "")
    return Path(found["folder"]) / "checkpoints" / "best.ckpt", job


OTHERS = {function.__name__: function for function in (
    vgg16_frozen, asl_vgg16_counted, predict_throughput, memory, input_pipeline, startup, size)}  # fmt: skip
