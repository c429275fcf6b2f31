"""What an imgclf preset asks for, handed to peers as plain data, and its pictures as plain class folders."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from imgclf.cli.hydra_app import CONF, register_resolvers, to_dict
from imgclf.config import ModelConfig
from imgclf.data.datamodule import ImageDataModule
from imgclf.models.network import build_network, count_parameters
from imgclf.training.build import build_data

__all__ = ["copies", "flat_copies", "link_tree", "peer_job", "settings_of"]


def settings_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The settings that `python -m imgclf.train <overrides>` would have."""
    register_resolvers()
    with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        return to_dict(compose("train", list(overrides)))


def peer_job(settings: dict[str, Any]) -> tuple[dict[str, Any], ImageDataModule]:
    """What a peer must know to do the same, with the numbers of parameters that its network must have; and the data."""
    data, model, trainer = build_data(settings), settings["model"], settings["trainer"]
    size, batch = settings["image_size"], data.batch_size
    network = build_network(ModelConfig.from_dict(model), len(data.classes), 3, size)
    limits = {}
    for split in ("train", "val"):
        limit, count = trainer[f"limit_{split}_batches"], len(data.samples[split])
        limits[split] = limit if limit and limit * batch < count else None  # no limit where the pictures are fewer
    train = len(data.samples["train"])
    job = {
        "task": "fit", "model": model, "optimizer": settings["optimizer"], "image_size": size, "batch_size": batch,
        "augment": data.augment, "steps": limits["train"], "val_steps": limits["val"],
        "epochs": trainer["max_epochs"], "parameters": list(count_parameters(network)),
        "pictures": limits["train"] * batch if limits["train"] else train, "classes": len(data.classes),
        "csv": data.samples["train"].pixels is not None,
    }  # fmt: skip
    return job, data


def link_tree(data: ImageDataModule, root: Path) -> Path:
    """`root`/{train,val,test}/<class>/ with a link to each picture of imgclf's own splits."""
    for split, samples in data.samples.items():
        for number, (item, target) in enumerate(zip(samples.items, samples.targets, strict=True)):
            folder = root / split / samples.classes[target].replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:06d}{Path(item).suffix.lower()}").symlink_to(Path(item).absolute())
    return root


def copies(tree: Path, root: Path, times: int, limit: int | None = None) -> Path:
    """The pictures of `tree` (the first `limit` a folder) `times` over below `root`, as files of their own."""
    for source in sorted(path for path in tree.glob("*/*") if path.is_dir()):
        folder = root / source.relative_to(tree)
        folder.mkdir(parents=True)
        for path in sorted(source.iterdir())[:limit]:
            for number in range(times):
                shutil.copyfile(path, folder / f"{path.stem}_{number:02d}{path.suffix}")
    return root


def flat_copies(tree: Path, folder: Path, count: int) -> Path:
    """So many pictures of `tree` in one flat folder, over and over again if there are fewer."""
    files = sorted(tree.rglob("*.jpg"))
    random.Random(0).shuffle(files)
    folder.mkdir(parents=True)
    for number in range(count):
        shutil.copyfile(files[number % len(files)], folder / f"{number:06d}.jpg")
    return folder
