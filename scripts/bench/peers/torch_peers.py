"""The frozen job as three kinds of PyTorch users write it: fastai, a plain loop over timm, Lightning with ImageFolder.

The first word of the job's `style` chooses. Each runs in stock PyTorch, without what imgclf does to the allocator and the
memory format. Prints one line of JSON.
"""

import json
import sys
import time
import warnings

import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

warnings.filterwarnings("ignore")
MEAN = STD = (0.5, 0.5, 0.5)


def main(job: dict) -> dict:
    """Fit as `job` says, and tell the seconds of each epoch."""
    torch.manual_seed(0)
    seconds = {"fastai": with_fastai, "timm": with_timm, "lightning": with_lightning}[job["style"]](job)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    if job["style"] == "fastai":
        import fastai

        versions["fastai"] = fastai.__version__
    return {"fit_seconds": sum(seconds), "epoch_seconds": seconds, "versions": versions}


def network(classes: int) -> nn.Module:
    """Frozen MobileNetV2, average pool, 256 ReLU, classes."""
    body = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=0).requires_grad_(False)
    return nn.Sequential(body, nn.Linear(1280, 256), nn.ReLU(), nn.Linear(256, classes))


def folders(job: dict) -> tuple[DataLoader, DataLoader, int]:
    """Batches of normalised pictures by two worker processes."""
    steps = transforms.Compose([transforms.Resize((job["size"], job["size"])), transforms.ToTensor(),
                                transforms.Normalize(MEAN, STD)])  # fmt: skip
    train, val = (datasets.ImageFolder(f"{job['tree']}/{split}", steps) for split in ("train", "val"))
    loaders = [DataLoader(data, job["batch"], shuffle=data is train, num_workers=2, persistent_workers=True)
               for data in (train, val)]  # fmt: skip
    return loaders[0], loaders[1], len(train.classes)


def with_timm(job: dict) -> list[float]:
    """timm's loader and a loop by hand, in channels_last, as timm's own script offers."""
    from timm.data import create_dataset, create_loader

    loaders = []
    for split, training in (("train", True), ("val", False)):
        data = create_dataset("", f"{job['tree']}/{split}", is_training=training)
        loaders.append(create_loader(data, (3, job["size"], job["size"]), job["batch"], is_training=training, no_aug=True,
                                     use_prefetcher=False, crop_pct=1.0, crop_mode="squash", num_workers=2, mean=MEAN, std=STD,
                                     persistent_workers=True))  # fmt: skip
    model = network(job["classes"]).to(memory_format=torch.channels_last)
    optimizer, loss = torch.optim.Adam(model[1:].parameters(), 1e-5, eps=1e-7), nn.CrossEntropyLoss()
    seconds = []
    for _ in range(job["epochs"]):
        began = time.perf_counter()
        model.train()
        model[0].eval()
        for images, targets in loaders[0]:
            optimizer.zero_grad()
            loss(model(images.contiguous(memory_format=torch.channels_last)), targets).backward()
            optimizer.step()
        model.eval()
        right = 0
        with torch.inference_mode():
            for images, targets in loaders[1]:
                right += (model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == targets).sum().item()
        seconds.append(time.perf_counter() - began)
    return seconds


def with_lightning(job: dict) -> list[float]:
    """A LightningModule of a few lines."""
    import pytorch_lightning as pl

    train, val, classes = folders(job)
    seconds: list[float] = []

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = network(classes), nn.CrossEntropyLoss()

        def on_train_epoch_start(self) -> None:
            self.model[0].eval()
            self.began = time.perf_counter()

        def training_step(self, batch, index):
            loss = self.loss(self.model(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, index):
            self.log("val_accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

        def on_train_epoch_end(self) -> None:
            seconds.append(time.perf_counter() - self.began)

        def configure_optimizers(self):
            return torch.optim.Adam(self.model[1:].parameters(), 1e-5, eps=1e-7)

    trainer = pl.Trainer(max_epochs=job["epochs"], accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(Classifier(), train, val)
    return seconds


def with_fastai(job: dict) -> list[float]:
    """A Learner over folders with the same network; fastai trains the last group of its layers alone when frozen."""
    from fastai.vision.all import (
        Callback,
        CrossEntropyLossFlat,
        ImageDataLoaders,
        Learner,
        Resize,
        ResizeMethod,
        accuracy,
    )

    seconds: list[float] = []

    class Clock(Callback):
        def before_epoch(self) -> None:
            self.began = time.perf_counter()

        def after_epoch(self) -> None:
            seconds.append(time.perf_counter() - self.began)

    squash = Resize(job["size"], ResizeMethod.Squish)
    data = ImageDataLoaders.from_folder(job["tree"], train="train", valid="val", item_tfms=squash, bs=job["batch"],
                                        num_workers=2, device=torch.device("cpu"))  # fmt: skip
    learner = Learner(data, network(job["classes"]), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[Clock()],
                      splitter=lambda model: [list(model[0].parameters()), list(model[1:].parameters())])  # fmt: skip
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit(job["epochs"], 1e-5)
    return seconds


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
