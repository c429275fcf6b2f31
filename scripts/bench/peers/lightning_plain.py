"""Plain Lightning: torchvision's ImageFolder, a DataLoader with two workers, a LightningModule, `Trainer.fit`.

Stock settings: no channels_last, no tuned allocator. One argument, a JSON object.
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from report import check_parameters, report
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from torch_networks import Classifier, count_parameters, trainable
from torchvision import datasets, transforms

PACKAGES = ("pytorch_lightning", "torch", "torchvision", "timm")
OPTIMIZERS = {"adam": torch.optim.Adam, "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.9)}


class Module(pl.LightningModule):
    """Cross-entropy and accuracy; `seconds` of each epoch, its validation included."""

    def __init__(self, network: Classifier, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.options, self.seconds = network, optimizer, []

    def training_step(self, batch: Any, index: int) -> Tensor:
        images, targets = batch
        loss = functional.cross_entropy(self.network(images), targets)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        images, targets = batch
        logits = self.network(images)
        self.log("val_loss", functional.cross_entropy(logits, targets))
        self.log("val_accuracy", (logits.argmax(1) == targets).float().mean())

    test_step = validation_step

    def on_train_epoch_start(self) -> None:
        self.began = perf_counter()

    def on_train_epoch_end(self) -> None:  # Lightning calls it after validation
        self.seconds.append(perf_counter() - self.began)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.options["name"]](trainable(self.network), lr=self.options["lr"])


def main(job: dict[str, Any]) -> None:
    """Train, test and save, and print the answer."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    loaders = {split: loader(job, split) for split in ("train", "val", "test") if (Path(job["root"]) / split).is_dir()}
    network = Classifier(job["model"], len(loaders["train"].dataset.classes), job["image_size"])
    parameters = check_parameters(job["parameters"], count_parameters(network))
    module = Module(network, job["optimizer"])
    limits = {"max_epochs": job["epochs"], "limit_train_batches": job["steps"], "limit_val_batches": job["val_steps"]}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=job["out"], **limits, **quiet)
    began = perf_counter()
    trainer.fit(module, loaders["train"], loaders["val"])
    fitted = perf_counter()
    if "test" in loaders:
        trainer.test(module, loaders["test"], verbose=False)
    report(PACKAGES, fitted - began, module.seconds, job["images"], parameters=parameters)


def loader(job: dict[str, Any], split: str) -> DataLoader:
    """Return batches of normalised images, augmented for training with torchvision's transforms."""
    size, options = job["image_size"], (job["augment"] or {}) if split == "train" else {}
    steps: list[Any] = [transforms.Resize((size, size))]
    if options.get("horizontal_flip"):
        steps.append(transforms.RandomHorizontalFlip())
    if options:
        rotation, shift, zoom = (options.get(name, 0.0) for name in ("rotation_degrees", "shift", "zoom"))
        shear = options.get("shear_degrees") or None
        steps.append(transforms.RandomAffine(rotation, (shift, shift), (1 - zoom, 1 + zoom), shear))
    steps += [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    images = datasets.ImageFolder(Path(job["root"]) / split, transforms.Compose(steps))
    return DataLoader(images, job["batch_size"], shuffle=split == "train", num_workers=2, persistent_workers=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
