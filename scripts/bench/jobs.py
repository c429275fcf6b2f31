"""The jobs of the benchmark: training runs beside their peers, and prediction, engines, memory, input, start-up and size."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from process import Bench, Run

__all__ = ["FITS", "OTHERS", "Target", "measure_fit"]

Words = tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """The ratio aimed at: imgclf `at_least` so many times as fast as `peer` at `what`, one of `page.QUANTITIES`."""

    what: str
    peer: str
    at_least: float | None


@dataclass(frozen=True)
class Fit:
    """An experiment with `overrides`, run by imgclf (with `warm`, once more on the same caches) and by each of `peers`."""

    experiment: str
    overrides: Words
    peers: Words
    targets: tuple[Target, ...]
    warm: bool = False


FROZEN = "sports_mobilenetv2_frozen"
PLAIN = ("dataset.augment=null",)
ROTATED = ("dataset.augment={rotation_degrees:20,shift:0.1,zoom:0.1}",)
CARDS = ("trainer.limit_train_batches=null", "trainer.max_epochs=3")  # of 15
WHOLE_EPOCHS = ("trainer.limit_train_batches=null", "trainer.limit_val_batches=null")

SPORTS_TARGETS = (
    Target("fit", "keras", 20),
    Target("fit", "fastai", 80),
    Target("fit", "timm_loop", None),
    Target("fit", "lightning_plain", None),
    Target("whole", "keras", 8),
    Target("whole warm", "keras", 20),
    Target("whole", "fastai", None),
    Target("whole", "timm_loop", None),
    Target("whole", "lightning_plain", None),
)
FINETUNE_TARGETS = (Target("fit", "keras", 8), Target("fit", "lightning_plain", None))
CARDS_TARGETS = (Target("images/s", "keras", 2.0), Target("fit", "keras", 1.6))
CNN_TARGETS = (Target("images/s", "keras", 1.0), Target("fit", "keras", None))
BATCHNORM_TARGETS = (Target("images/s", "keras", 1.4), Target("fit", "keras", None))
SIGN_TARGETS = (Target("setup + fit", "keras", 4), Target("fit", "keras", None), Target("whole", "keras", None))

ALL_PEERS, KERAS = ("keras", "fastai", "timm_loop", "lightning_plain"), ("keras",)
CARDS_BESIDE_TIMM = (*CARDS_TARGETS, Target("images/s", "timm_loop", None))
FITS = {
    "sports_frozen": Fit(FROZEN, PLAIN, ALL_PEERS, SPORTS_TARGETS, warm=True),
    "sports_finetune": Fit("sports_mobilenetv2_finetune", PLAIN, ("keras", "lightning_plain"), FINETUNE_TARGETS),
    "cards_v3": Fit("cards_mobilenetv3", PLAIN + CARDS, ("keras", "timm_loop"), CARDS_BESIDE_TIMM),
    "cards_v3_augmented": Fit("cards_mobilenetv3", ROTATED + CARDS, KERAS, CARDS_TARGETS),
    "rps_cnn": Fit("rps_cnn", (), KERAS, CNN_TARGETS),
    "rps_cnn_batchnorm": Fit("rps_cnn_batchnorm", (*PLAIN, "callbacks=none"), KERAS, BATCHNORM_TARGETS),
    "asl_cnn": Fit("asl_cnn", (), KERAS, CNN_TARGETS),
    "sign_mnist_mobilenet": Fit("sign_mnist_mobilenet", (), KERAS, SIGN_TARGETS),
}
ABOUT = ("epochs", "batch_size", "image_size", "images", "parameters", "steps", "augment")


def measure_fit(bench: Bench, fit: Fit) -> Run:
    """Run imgclf cold (and warm) and the peers in turn, so that a machine that slows down slows all of them."""
    overrides = bench.overrides(fit.experiment, fit.overrides)
    job = bench.prepare(overrides)
    runs: list[Run] = []
    for repeat in range(bench.repeats):
        cache = bench.new("cache")
        for variant in ("cold", "warm") if fit.warm else ("cold",):
            runs.append(bench.attempt("imgclf", variant, bench.imgclf, overrides, cache, job["images"]))
        for who in fit.peers[repeat :: bench.repeats]:
            runs.append(bench.attempt(who, "", bench.peer, who, job))
    return {"about": {key: job[key] for key in ABOUT}, "runs": runs}


def vgg16_frozen(bench: Bench) -> Run:
    """The frozen VGG16 over whole epochs, and the bare forward pass of both engines on the same number of images."""
    fit = Fit("asl_vgg16", WHOLE_EPOCHS, KERAS, ())
    result = measure_fit(bench, fit)
    job = bench.prepare(bench.overrides(fit.experiment, fit.overrides))
    count = 32 if bench.quick else 256
    forward = {
        "backbone": job["model"]["backbone"],
        "image_size": job["image_size"],
        "count": count,
        "images": job["images"],
    }
    array = {"task": "predict_array", "count": count}
    for _ in range(bench.repeats):
        result["runs"].append(bench.attempt("imgclf", "engine", bench.worker, "engines.py", forward))
        result["runs"].append(bench.attempt("keras", "engine", bench.peer, "keras", job, **array))
    return result


def asl_vgg16_counted(bench: Bench) -> Run:
    """The experiment as it is: images through the frozen part, beside the distinct images of the run."""
    overrides = bench.overrides("asl_vgg16")
    job = bench.prepare(overrides)
    counts = {split: len(list(Path(job["root"]).glob(f"{split}/*/*"))) for split in ("train", "val", "test")}
    run = bench.attempt("imgclf", "cold", bench.imgclf, overrides, bench.new("cache"), job["images"])
    return {"about": {"distinct": counts}, "runs": [run]}


def predict_throughput(bench: Bench) -> Run:
    """n and 3n JPEG files: the seconds of the 2n more do not contain start-up."""
    # From 1,000 images on, imgclf chooses its fast engine, for both folders.
    few = 20 if bench.quick else 1000
    checkpoint, job = _train_once(bench)
    folders = [_copy_flat(Path(job["root"]), bench.new("files"), count) for count in (few, 3 * few)]

    def ours(precision: str) -> Run:
        words, options = ["-m", "imgclf.predict", str(checkpoint)], ["--csv", "--precision", precision]
        return _throughput(few, [bench.command([*words, str(folder), *options]).seconds for folder in folders])

    def keras() -> Run:
        results = [bench.peer("keras", job, task="predict_folder", root=str(folder)) for folder in folders]
        return _throughput(few, [result["wall_seconds"] for result in results])

    runs: list[Run] = []
    for _ in range(bench.repeats):
        runs += [bench.attempt("imgclf", precision, ours, precision) for precision in ("fp32", "bf16")]
        runs.append(bench.attempt("keras", "fp32", keras))
    return {"about": {"images": [few, 3 * few]}, "runs": runs}


def _throughput(few: int, seconds: list[float]) -> Run:
    """Return images/s from the wall seconds for `few` images and for three times as many."""
    short, long = seconds
    return {"wall_seconds": [round(short, 3), round(long, 3)], "images_per_second": 2 * few / (long - short)}


def memory(bench: Bench) -> Run:
    """Peak anonymous memory on the images as they are, and on four copies of each."""
    runs: list[Run] = []
    for name, experiment, more in (("frozen", FROZEN, PLAIN), ("trained", "cards_mobilenetv3", PLAIN + CARDS)):
        job = bench.prepare(bench.overrides(experiment, more))
        for times in (1, 4):
            root = _copy_tree(Path(job["root"]), bench.new("copies"), times, 2 if bench.quick else None)
            overrides = [*bench.overrides(experiment, more, root), "trainer.max_epochs=2"]
            images, variant = times * job["images"], f"{name} {times}x"
            runs.append(bench.attempt("imgclf", variant, bench.imgclf, overrides, bench.new("cache"), images))
    return {"about": {}, "runs": runs}


def input_pipeline(bench: Bench) -> Run:
    """Augmented batches on one core, from files by torchvision and from imgclf's full pixel cache."""
    root, cache = Path(bench.prepare(bench.overrides(FROZEN, PLAIN))["root"]), bench.new("cache")
    if bench.quick:
        root = _copy_tree(root, bench.new("copies"), 1, 2)
    env = {"OMP_NUM_THREADS": "1", "IMGCLF_CACHE": str(cache)}
    runs: list[Run] = []
    for _ in range(bench.repeats):
        for who in ("torchvision", "imgclf"):
            runs.append(bench.attempt(who, "", bench.worker, "pipeline.py", {"who": who, "root": str(root)}, env))
    return {"about": {}, "runs": runs}


def startup(bench: Bench) -> Run:
    """Median wall seconds of five, after one that does not count."""
    checkpoint, job = _train_once(bench)
    image = next(Path(job["root"]).rglob("*.jpg"))
    commands = {
        "train --help": ["-m", "imgclf.train", "--help"],
        "a wrong override": ["-m", "imgclf.train", "nosuchkey=1"],
        "a missing folder": ["-m", "imgclf.train", "data_dir=/nonexistent"],
        "predict one file": ["-m", "imgclf.predict", str(checkpoint), str(image)],
        "import torch": ["-c", "import torch"],
    }

    def typical(words: list[str]) -> Run:
        seconds = [bench.command(words, may_fail=True).seconds for _ in range(2 if bench.quick else 6)]
        return {"wall_seconds": median(seconds[1:])}

    return {"about": {}, "runs": [bench.attempt("imgclf", name, typical, words) for name, words in commands.items()]}


def size(bench: Bench) -> Run:
    """The frozen job on 1, 4 and 16 copies of the images, and over 1, 5, 10 and 20 epochs; Keras beside it."""
    runs: list[Run] = []
    plain = bench.prepare(bench.overrides(FROZEN, PLAIN))
    for times in (1, 4, 16):
        root = _copy_tree(Path(plain["root"]), bench.new("copies"), times, 1 if bench.quick else None)
        overrides = bench.overrides(FROZEN, PLAIN, root)
        job = bench.prepare(overrides)
        facts = {"times": times, "images": job["images"]}
        ours = bench.attempt("imgclf", f"{times}x", bench.imgclf, overrides, bench.new("cache"), job["images"])
        keras = bench.attempt("keras", f"{times}x", bench.peer, "keras", job)
        runs += [{**ours, **facts}, {**keras, **facts}]
    for epochs in (1, 5, 10, 20):
        overrides = [*bench.overrides(FROZEN, PLAIN), f"trainer.max_epochs={epochs}"]
        cache, variant = bench.new("cache"), f"{epochs} epochs"
        runs.append(bench.attempt("imgclf", variant, bench.imgclf, overrides, cache, plain["images"]))
    return {"about": {}, "runs": runs}


OTHER_JOBS = (vgg16_frozen, asl_vgg16_counted, predict_throughput, memory, input_pipeline, startup, size)
OTHERS = {function.__name__: function for function in OTHER_JOBS}


def _train_once(bench: Bench) -> tuple[Path, Run]:
    """Return a checkpoint of the frozen MobileNetV2 after one epoch, and its job."""
    overrides = [*bench.overrides(FROZEN, PLAIN), "trainer.max_epochs=1"]
    job = bench.prepare(overrides)
    run = bench.imgclf(overrides, bench.new("cache"), job["images"])
    return Path(run["folder"]) / "checkpoints" / "best.ckpt", job


def _copy_tree(tree: Path, root: Path, times: int, limit: int | None = None) -> Path:
    """Copy the images of `tree` (the first `limit` of each folder) `times` times below `root`, as files of their own."""
    for source in sorted(path for path in tree.glob("*/*") if path.is_dir()):
        folder = root / source.relative_to(tree)
        folder.mkdir(parents=True)
        for path in sorted(source.iterdir())[:limit]:
            for number in range(times):
                shutil.copyfile(path, folder / f"{path.stem}_{number:02d}{path.suffix}")
    return root


def _copy_flat(tree: Path, folder: Path, count: int) -> Path:
    """Copy `count` images of `tree` into one flat folder, again from the first if there are fewer."""
    files = sorted(tree.rglob("*.jpg"))
    random.Random(0).shuffle(files)
    folder.mkdir(parents=True)
    for number in range(count):
        shutil.copyfile(files[number % len(files)], folder / f"{number:06d}.jpg")
    return folder
