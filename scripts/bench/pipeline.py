"""`python pipeline.py '{"who": "torchvision", "root": ...}'`: pictures/s of augmented float batches on one core.

`who` is torchvision (ImageFolder, PIL transforms, a DataLoader without workers) or imgclf (its training loader, once its
pixel cache is full). Both hand over float32 [B, 3, S, S] from 0 to 1; prints one JSON object.
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
    """One epoch to warm up, one that counts."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    epoch = {"torchvision": with_torchvision, "imgclf": with_imgclf}[job["who"]](job["root"])
    for _ in range(2):
        began = perf_counter()
        count = sum(len(images) for images in epoch())
        seconds = perf_counter() - began
    print(json.dumps({"images_per_second": count / seconds, "fit_seconds": seconds}))


def with_torchvision(root: str) -> Any:
    """The transforms of torchvision's documentation for this augmentation."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = transforms.Compose([
        transforms.Resize((SIZE, SIZE)), transforms.RandomAffine(DEGREES, (SHIFT, SHIFT), (1 - ZOOM, 1 + ZOOM),
        interpolation=transforms.InterpolationMode.BILINEAR), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
    ])  # fmt: skip
    loader = DataLoader(datasets.ImageFolder(f"{root}/train", steps), BATCH, shuffle=True, num_workers=0)
    return lambda: (images for images, _ in loader)


def with_imgclf(root: str) -> Any:
    """The same amounts by imgclf's own names; its loader gives uint8, which are turned to floats here."""
    from imgclf.data.datamodule import ImageDataModule
    from imgclf.preprocess import Preprocess

    augment = {"rotation_degrees": DEGREES, "shift": SHIFT, "zoom": ZOOM, "horizontal_flip": True}
    data = ImageDataModule(root, preprocess=Preprocess(size=SIZE), batch_size=BATCH, augment=augment, num_workers=0,
                           cache="disk")  # fmt: skip
    loader = data.train_dataloader()
    numbers = iter(range(1000))

    def epoch() -> Iterator[torch.Tensor]:
        loader.sampler.set_epoch(next(numbers))
        for batch in loader:
            yield batch.images.float() / 255

    return epoch


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
