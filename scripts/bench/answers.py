"""Time how fast a trained classifier answers: whole processes, single images in a script, and folders of JPEG files.

    python scripts/bench/answers.py IMAGES [--keras PYTHON] [--rounds 5] [--images 1000]

IMAGES is a folder with JPEG files. MobileNetV2 at 224 pixels with random weights is trained for a batch of the drawn cards
and exported; its speed doesn't depend on the weights. The sides alternate within each round, after one that isn't counted.
`--keras`: the interpreter of an environment with requirements/keras.txt. Prints Markdown tables of medians and ranges.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from process import run_process

HERE = Path(__file__).parent
TRAIN = (
    "dataset=cards",
    "data_dir=demo",
    "model=mobilenetv2",
    "model.pretrained=false",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "report=false",
)
# Prints the median of the milliseconds of 50 single images, after ten that don't count.
SINGLE = """
import sys, time, statistics
{setup}
def median_of(count):
    times = []
    for _ in range(count):
        began = time.perf_counter()
        {call}
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)
median_of(10)
print(median_of(50))
"""
LOADED = ("import imgclf; model = imgclf.load(sys.argv[1])", "model.predict_one(sys.argv[2])")
# A script as people write it around timm and torchvision.
PLAIN = (
    """
import torch, timm
from PIL import Image
from torchvision import transforms as T
net = timm.create_model("mobilenetv2_100", num_classes=53).eval()
change = T.Compose([T.Resize((224, 224)), T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
""",
    """with torch.no_grad(): net(change(Image.open(sys.argv[2]).convert("RGB"))[None]).softmax(1)""",
)
# Prints the seconds from an imported imgclf to the answers for a folder: loading, choosing and compiling an engine count.
FOLDER = """
import sys, time
import imgclf
began = time.perf_counter()
answers = imgclf.load(sys.argv[1], engine=sys.argv[3]).predict(sys.argv[2])
print(time.perf_counter() - began)
"""


def main() -> None:
    """Run all rounds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder with JPEG files")
    parser.add_argument("--keras", type=Path, help="interpreter with TensorFlow and Keras")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--number", type=int, default=1000, help="images of the smaller folder (default: 1000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        run_process([sys.executable, "-m", "imgclf.train", *TRAIN, f"hydra.run.dir={work / 'run'}"])
        run_process([sys.executable, "-m", "imgclf.export", str(work / "run"), "--folder", str(work / "folder")])
        run_process([sys.executable, "-m", "imgclf.export", str(work / "run"), "--out", str(work / "best.onnx")])
        files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        random.Random(0).shuffle(files)
        models = {"exported": work / "best.onnx", "checkpoint": work / "run" / "checkpoints" / "best.ckpt"}
        processes(models, work, files[0], options.rounds)
        single(models, files[0], options.rounds)
        few = [copies(files, work / f"files{count}", count) for count in (1, 10, 100)]
        small_folders(models, few, options.rounds)
        folders = [copies(files, work / f"many{count}", count) for count in (options.number, 3 * options.number)]
        throughput(models, folders, options.keras, options.rounds)


def processes(models: Mapping[str, Path], work: Path, image: Path, rounds: int) -> None:
    """Whole processes: one image, from the start of Python to its end."""
    sides = {
        "python -c 'import torch'": ["-c", "import torch"],
        "imgclf predict best.onnx": ["-m", "imgclf", "predict", str(models["exported"]), str(image)],
        "python predict.py (exported folder)": [str(work / "folder" / "predict.py"), str(image)],
        "imgclf predict best.ckpt": ["-m", "imgclf", "predict", str(models["checkpoint"]), str(image)],
    }
    measured = alternate(
        {name: lambda words=words: run_process([sys.executable, *words]).seconds for name, words in sides.items()},
        rounds,
    )
    table("whole process, one image", "s", measured)


def single(models: Mapping[str, Path], image: Path, rounds: int) -> None:
    """One image after another in a script."""

    def timed(setup: str, call: str, model: Path) -> float:
        code = SINGLE.format(setup=setup, call=call)
        return float(run_process([sys.executable, "-c", code, str(model), str(image)]).stdout.split()[-1])

    sides: dict[str, Callable[[], float]] = {
        f"imgclf.load of the {name}": lambda path=path: timed(*LOADED, path) for name, path in models.items()
    }
    sides["timm and torchvision, as tutorials write it"] = lambda: timed(*PLAIN, image)
    table("single image in a script", "ms", alternate(sides, rounds))


def small_folders(models: Mapping[str, Path], folders: list[Path], rounds: int) -> None:
    """Seconds from an imported imgclf to the answers for 1, 10 and 100 images."""

    def timed(model: Path, folder: Path, engine: str) -> float:
        return float(run_process([sys.executable, "-c", FOLDER, str(model), str(folder), engine]).stdout.split()[-1])

    for folder in folders:
        sides = {
            f"{name}, {engine}": lambda path=path, engine=engine, folder=folder: timed(path, folder, engine)
            for name, path in models.items()
            for engine in ("auto", "openvino")
        }
        table(f"imgclf.load and predict, {len(list(folder.iterdir()))} images", "s", alternate(sides, rounds))


def throughput(models: Mapping[str, Path], folders: list[Path], keras: Path | None, rounds: int) -> None:
    """Images/s from JPEG: the seconds of the images that the larger folder has more don't contain start-up."""
    counts = [len(list(folder.iterdir())) for folder in folders]

    def rate(seconds: list[float]) -> float:
        return (counts[1] - counts[0]) / (seconds[1] - seconds[0])

    def ours(model: Path, *words: str) -> float:
        command = [sys.executable, "-m", "imgclf.predict", str(model), "--csv", *words]
        return rate([run_process([*command, str(folder)]).seconds for folder in folders])

    def theirs() -> float:
        head = {"hidden": [], "pool": "avg", "dropout": 0.0, "batch_norm": False, "l2": 0.0}
        model = {"backbone": "mobilenetv2_100", "freeze": "all", "head": head}
        job = {"task": "predict_folder", "model": model, "classes": 53, "image_size": 224}
        script = str(HERE / "peers" / "keras_peer.py")
        seconds = []
        for folder in folders:
            done = run_process([str(keras), script, json.dumps({**job, "root": str(folder)})])
            seconds.append(done.seconds)
        return rate(seconds)

    sides: dict[str, Callable[[], float]] = {
        "exported, auto (OpenVINO)": lambda: ours(models["exported"]),
        "exported, onnxruntime": lambda: ours(models["exported"], "--engine", "onnxruntime"),
        "exported, OpenVINO in bf16": lambda: ours(models["exported"], "--precision", "bf16"),
        "checkpoint, auto (OpenVINO)": lambda: ours(models["checkpoint"]),
        "checkpoint, eager": lambda: ours(models["checkpoint"], "--engine", "eager"),
    }
    if keras:
        sides["Keras predict, fp32"] = theirs
    table(f"from {counts[0]:,} to {counts[1]:,} JPEG files", "images/s", alternate(sides, rounds))


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return what each side measures in each round, after one that isn't counted; a failed side is left out."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, measure in sides.items():
            try:
                value = measure()
            except Exception as error:  # a series goes on without a side that fails
                print(f"{name}: {error}", file=sys.stderr)
                continue
            if number:
                measured[name].append(value)
    return {name: values for name, values in measured.items() if values}


def table(title: str, unit: str, measured: Mapping[str, list[float]]) -> None:
    """Print the medians and ranges."""
    print(f"\n| {title} | median, {unit} | range |\n|---|---|---|")
    for name, values in measured.items():
        print(f"| {name} | {median(values):.3g} | {min(values):.3g} to {max(values):.3g} |", flush=True)


def copies(files: list[Path], folder: Path, count: int) -> Path:
    """Copy `count` files into one folder, again from the first if there are fewer."""
    folder.mkdir(parents=True)
    for number in range(count):
        shutil.copyfile(files[number % len(files)], folder / f"{number:06d}.jpg")
    return folder


if __name__ == "__main__":
    main()
