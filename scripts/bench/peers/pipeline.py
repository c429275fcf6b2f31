"""Images/s of augmented float batches on one core.

    python pipeline.py '{"who": "torchvision", "root": ...}'

`who` is torchvision (ImageFolder, PIL transforms, a DataLoader without workers) or imgclf (its training loader with a full
pixel cache). Both yield float32 [B, 3, S, S] from 0 to 1. Prints one JSON object. Runs in imgclf's own environment.
"""

import json
import os
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import torch

SIZE, BATCH, DEGREES, SHIFT, ZOOM = 224, 32, 10, 0.1, 0.15


def main(job: dict[str, Any]) -> None:
    """Run one epoch to warm up, and one that counts."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    epoch = {"torchvision": with_torchvision, "imgclf": with_imgclf}[job["who"]](job["root"])
    for _ in range(2):
        began = perf_counter()
        count = sum(len(images) for images in epoch())
        seconds = perf_counter() - began
    print(json.dumps({"images_per_second": count / seconds, "fit_seconds": seconds}))


def with_torchvision(root: str) -> Any:
    """Return an epoch of torchvision's documented transforms for this augmentation."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    bilinear = transforms.InterpolationMode.BILINEAR
    affine = transforms.RandomAffine(DEGREES, (SHIFT, SHIFT), (1 - ZOOM, 1 + ZOOM), interpolation=bilinear)
    steps = [transforms.Resize((SIZE, SIZE)), affine, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    images = datasets.ImageFolder(f"{root}/train", transforms.Compose(steps))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=0)
    return lambda: (images for images, _ in loader)


def with_imgclf(root: str) -> Any:
    """Return an epoch of the same augmentation by imgclf; its loader yields uint8, which become floats here."""
    from imgclf.data.datamodule import ImageDataModule
    from imgclf.preprocess import Preprocess

    augment = {"rotation_degrees": DEGREES, "shift": SHIFT, "zoom": ZOOM, "horizontal_flip": True}
    options = {"batch_size": BATCH, "augment": augment, "num_workers": 0}
    data = ImageDataModule(root, preprocess=Preprocess(size=SIZE), **options)  # cached on disk by default
    loader = data.train_dataloader()
    numbers = iter(range(1000))

    def epoch() -> Iterator[torch.Tensor]:
        loader.sampler.set_epoch(next(numbers))
        for batch in loader:
            yield batch.images.float() / 255

    return epoch


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
