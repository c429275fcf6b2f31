"""What isn't a training job: engines, evaluation, memory, the input pipeline, start-up, and growth with data and epochs."""

import json
import os
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from measure import measure

__all__ = ["EXTRAS"]

FROZEN = ("experiment=sports_mobilenetv2_frozen", "dataset.augment=null")


def engines(bench: Any) -> dict[str, Any]:
    """The bare forward pass of VGG16 @150 from memory, imgclf's engine and Keras."""
    job = {"kind": "forward", "size": 150, "repeats": 1 if bench.quick else 3}
    _, ours = bench.peer("imgclf_forward.py", None, job)
    _, keras = bench.peer("keras_peer.py", "keras", job)
    return {"imgclf": ours, "keras": keras, "ratio": ours["images_per_second"] / keras["images_per_second"]}


def asl_vgg16_counted(bench: Any) -> dict[str, Any]:
    """The reference's VGG16 job as it is: how many pictures went through the frozen part, and how many there are."""
    bench.cold("counted")
    more = ("trainer.limit_train_batches=1",) if bench.quick else ()
    _, facts = bench.train(("experiment=asl_vgg16",), bench.data / "asl_alphabet", "counted", *more)
    from imgclf.data import datamodule_class

    data = datamodule_class("asl_alphabet")(bench.data / "asl_alphabet")
    data.setup()
    return {"forwards": facts["forwards"]["pictures"], "pictures": sum(map(len, data.samples.values()))}


def predict_throughput(bench: Any) -> dict[str, Any]:
    """JPEG files to classes: pictures a second behind start-up, from the difference between n and 3n files."""
    bench.train(FROZEN, bench.data / "sports", "predict", "trainer.max_epochs=1", "trainer.limit_train_batches=1",
                "trainer.limit_val_batches=1", "features=off")  # fmt: skip
    checkpoint = bench.work / "predictor.ckpt"
    shutil.copy(bench.work / "run" / "checkpoints" / "best.ckpt", checkpoint)
    files = sorted((bench.data / "sports").glob("*/*/*.jpg"))
    few, many = bench.work / "few", bench.work / "many"
    count = 40 if bench.quick else 1000  # so many that OpenVINO is chosen for both
    for folder, size in ((few, count), (many, 3 * count)):
        folder.mkdir(exist_ok=True)
        for number in range(size):
            link = folder / f"{number}.jpg"
            if not link.exists():
                link.symlink_to(files[number % len(files)])
    result: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        seconds = []
        for folder in (few, many):
            command = [
                sys.executable,
                "-m",
                "imgclf.predict",
                str(checkpoint),
                str(folder),
                "--csv",
                "--precision",
                precision,
            ]
            measured = measure(command, bench.environment)
            if measured.code:
                raise RuntimeError(measured.last_line)
            seconds.append(measured.seconds)
        result[precision] = 2 * count / (seconds[1] - seconds[0])
    job = {"kind": "predict", "folder": str(few), "size": 224, "repeats": 1 if bench.quick else 3, "network": "mobilenetv2",
           "trainable": "none", "pool": "avg", "hidden": [256]}  # fmt: skip
    _, keras = bench.peer("keras_peer.py", "keras", job)
    return {**result, "keras": keras["images_per_second"]}


def copies(source: Path, target: Path, times: int) -> Path:
    """The pictures of a data set `times` over, as files of their own under other names."""
    for path in source.glob("*/*/*.jpg"):
        folder = target / path.relative_to(source).parent
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            copy = folder / f"{path.stem}_{number}.jpg"
            if not copy.exists():
                shutil.copy(path, copy)
    return target


def memory(bench: Any) -> dict[str, Any]:
    """Peak anonymous memory of a frozen and a trained job, on the pictures and on four times as many."""
    result: dict[str, Any] = {}
    trained = ("experiment=sports_mobilenetv2_frozen", "model.freeze=none", "model=mobilenetv3", "image_size=128")
    for name, overrides in (("frozen", FROZEN), ("trained", trained)):
        peaks = []
        for times in (1, 4):
            root = copies(bench.data / "sports", bench.work / f"sports_{times}", times)
            bench.cold("memory")
            epochs = "trainer.max_epochs=1" if bench.quick or name == "trained" else "trainer.max_epochs=2"
            measured, _ = bench.train(
                overrides, root, "memory", epochs, "engine=openvino" if name == "frozen" else "features=off"
            )
            peaks.append(measured.peak_mib)
        result[name] = {"peak_mib": peaks, "ratio": peaks[1] / peaks[0]}
    return result


PIPELINE = """
import sys, time, json
from imgclf.allocator import keep_memory
keep_memory()
import torch
torch.set_num_threads(1)
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from imgclf import Preprocess, ImageDataModule
root, tree, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
steps = transforms.Compose([
    transforms.RandomAffine(20, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=10,
                            interpolation=transforms.InterpolationMode.BILINEAR),
    transforms.RandomHorizontalFlip(), transforms.ToTensor()])
plain = DataLoader(datasets.ImageFolder(tree + "/train", steps), 32, shuffle=True)
augment = {"rotation_degrees": 20, "shift": 0.1, "zoom": 0.1, "shear_degrees": 10, "horizontal_flip": True}
data = ImageDataModule(root, preprocess=Preprocess(size=224), augment=augment, num_workers=0)
ours = data.train_dataloader()
times = {"torchvision": [], "imgclf": []}
for epoch in range(repeats + 1):
    for name, loader in (("torchvision", plain), ("imgclf", ours)):
        if name == "imgclf":
            loader.set_epoch(epoch)
        began = time.perf_counter()
        count = sum(len(batch[0]) for batch in loader)
        times[name].append(count / (time.perf_counter() - began))
print(json.dumps({name: values[1:] for name, values in times.items()}))
"""


def input_pipeline(bench: Any) -> dict[str, Any]:
    """Augmented 224 x 224 batches a second on one core: torchvision's ImageFolder, and imgclf's loader once it is cached."""
    tree, _, _ = bench.tree("sports")
    environment = {**bench.environment, "OMP_NUM_THREADS": "1", "IMGCLF_CACHE": str(bench.work / "pipeline")}
    if hasattr(os, "sched_setaffinity"):
        command = [sys.executable, "-c", "import os; os.sched_setaffinity(0, {0})\n" + PIPELINE]
    else:
        command = [sys.executable, "-c", PIPELINE]
    measured = measure([*command, str(bench.data / "sports"), str(tree), "1" if bench.quick else "3"], environment)
    if measured.code:
        raise RuntimeError(measured.last_line)
    rates = {name: median(values) for name, values in json.loads(measured.last_line).items()}
    return {**rates, "ratio": rates["imgclf"] / rates["torchvision"]}


def startup(bench: Any) -> dict[str, Any]:
    """Wall seconds until an answer, the median of five."""
    if not (checkpoint := bench.work / "predictor.ckpt").exists():
        bench.train(FROZEN, bench.data / "sports", "predict", "trainer.max_epochs=1", "trainer.limit_train_batches=1",
                    "trainer.limit_val_batches=1", "features=off")  # fmt: skip
        shutil.copy(bench.work / "run" / "checkpoints" / "best.ckpt", checkpoint)
    picture = str(next((bench.data / "sports").glob("*/*/*.jpg")))
    commands = {
        "help": ["-m", "imgclf.train", "--help"], "wrong override": ["-m", "imgclf.train", "nosuchkey=1"],
        "missing folder": ["-m", "imgclf.train", "data_dir=/nonexistent"], "import torch": ["-c", "import torch"],
        "import torch, timm": ["-c", "import torch, timm"],
        "predict one file": ["-m", "imgclf.predict", str(checkpoint), picture],
    }  # fmt: skip
    seconds: dict[str, float] = {}
    for name, words in commands.items():
        runs = [measure([sys.executable, *words], bench.environment).seconds for _ in range(2 if bench.quick else 6)]
        seconds[name] = median(runs[1:])
    return seconds


def growth(bench: Any) -> dict[str, Any]:
    """Seconds of the frozen job's fit, cold, by the number of pictures and by the number of epochs."""
    result: dict[str, Any] = {"size": {}, "epochs": {}}
    for times in (1,) if bench.quick else (1, 4, 16):
        root = copies(bench.data / "sports", bench.work / f"sports_{times}", times)
        bench.cold("growth")
        _, facts = bench.train(FROZEN, root, "growth", "trainer.max_epochs=10")
        result["size"][str(times)] = facts["seconds"]["fit"]
        if times == 16:
            shutil.rmtree(root)
    for epochs in (1,) if bench.quick else (1, 5, 10, 20):
        bench.cold("growth")
        _, facts = bench.train(FROZEN, bench.data / "sports", "growth", f"trainer.max_epochs={epochs}")
        result["epochs"][str(epochs)] = facts["seconds"]["fit"]
    return result


EXTRAS = {
    "engines": engines, "asl_vgg16_counted": asl_vgg16_counted, "predict_throughput": predict_throughput, "memory": memory,
    "input_pipeline": input_pipeline, "startup": startup, "growth": growth,
}  # fmt: skip
