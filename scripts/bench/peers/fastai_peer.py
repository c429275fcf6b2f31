"""fastai: `ImageDataLoaders.from_folder` with fastai's number of workers, a `Learner` on the same frozen network, `fit`.

`vision_learner` would put its own head on the network; the rest is as it does. One argument, a JSON object.
"""

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from fastai.callback.schedule import Learner
from fastai.callback.training import ShortEpochCallback
from fastai.learner import Callback
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, ResizeMethod
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders, Normalize
from report import check_parameters, report
from torch_networks import Classifier, count_parameters

PACKAGES = ("fastai", "torch", "torchvision", "timm")


class Clock(Callback):
    """Seconds of each epoch, its validation included."""

    def before_fit(self) -> None:
        self.seconds: list[float] = []

    def before_epoch(self) -> None:
        self.began = perf_counter()

    def after_epoch(self) -> None:
        self.seconds.append(perf_counter() - self.began)


def main(job: dict[str, Any]) -> None:
    """Train, test and save, and print the answer."""
    if job["augment"]:
        raise SystemExit("fastai_peer has no augmentation like imgclf's")
    set_seed(0)
    root = Path(job["root"])
    resize, normalize = Resize(job["image_size"], method=ResizeMethod.Squish), Normalize.from_stats(*imagenet_stats)
    options = {"bs": job["batch_size"], "item_tfms": resize, "batch_tfms": normalize}
    data = ImageDataLoaders.from_folder(root, train="train", valid="val", **options)
    network = Classifier(job["model"], len(data.vocab), job["image_size"])
    parameters = check_parameters(job["parameters"], count_parameters(network))
    learner = Learner(data, network, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=job["out"])
    clock = Clock()
    callbacks = [clock] + ([ShortEpochCallback(job["steps"] / len(data.train), False)] if job["steps"] else [])
    began = perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fit(job["epochs"], job["optimizer"]["lr"], cbs=callbacks)
        fitted = perf_counter()
        if (root / "test").is_dir():
            files = sorted(path for path in (root / "test").rglob("*.*") if path.is_file())
            learner.validate(dl=data.test_dl(files, with_labels=True))
    learner.save("model")
    report(PACKAGES, fitted - began, clock.seconds, job["images"], parameters=parameters)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
