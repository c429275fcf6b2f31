"""A plain PyTorch loop on timm's loader, as in timm's train.py with --channels-last, without augmentation.

One argument, a JSON object.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import timm.data
import timm.optim
import torch
from report import check_parameters, report
from torch.nn import functional
from torch_networks import Classifier, count_parameters, trainable

PACKAGES = ("timm", "torch", "torchvision")


def main(job: dict[str, Any]) -> None:
    """Train, test and save, and print the answer."""
    if job["augment"]:
        raise SystemExit("timm_loop has no augmentation like imgclf's")
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = [split for split in ("train", "val", "test") if (Path(job["root"]) / split).is_dir()]
    loaders = {split: loader(job, split, device) for split in splits}
    classes = len(loaders["train"].dataset.reader.class_to_idx)
    network = Classifier(job["model"], classes, job["image_size"]).to(device, memory_format=torch.channels_last)
    parameters = check_parameters(job["parameters"], count_parameters(network))
    options = job["optimizer"]
    optimizer = timm.optim.create_optimizer_v2(trainable(network), opt=options["name"], lr=options["lr"])
    seconds, began = [], perf_counter()
    for _ in range(job["epochs"]):
        start = perf_counter()
        train(network, islice(loaders["train"], job["steps"]), optimizer, device)
        validate(network, islice(loaders["val"], job["val_steps"]), device)
        seconds.append(perf_counter() - start)
    fitted = perf_counter()
    if "test" in loaders:
        validate(network, loaders["test"], device)
    torch.save(network.state_dict(), Path(job["out"]) / "model.pth")
    report(PACKAGES, fitted - began, seconds, job["images"], parameters=parameters)


def loader(job: dict[str, Any], split: str, device: torch.device) -> Any:
    """Return timm's loader of one split, with two workers."""
    images = timm.data.create_dataset("", root=str(Path(job["root"]) / split))
    pixels = {
        "interpolation": "bilinear",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    return timm.data.create_loader(
        images,
        input_size=(3, job["image_size"], job["image_size"]),
        batch_size=job["batch_size"],
        is_training=split == "train",
        no_aug=True,
        num_workers=2,
        device=device,
        **pixels,
    )


def train(network: Classifier, batches: Any, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Train for one epoch."""
    network.train()
    for images, targets in batches:
        images = images.to(device, memory_format=torch.channels_last)
        loss = functional.cross_entropy(network(images), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def validate(network: Classifier, batches: Any, device: torch.device) -> float:
    """Return the accuracy."""
    network.eval()
    correct = count = 0
    for images, targets in batches:
        predictions = network(images.to(device, memory_format=torch.channels_last)).argmax(1).cpu()
        correct += int((predictions == targets.cpu()).sum())
        count += len(predictions)
    return correct / max(count, 1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
