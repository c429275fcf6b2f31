"""The jobs of the comparison: what imgclf runs, what its peers run, and what ratio the project set itself."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["JOBS", "Fit"]


@dataclass(frozen=True)
class Fit:
    """One training job. `overrides`: of `python -m imgclf.train`; `keras`: the job of `peers/keras_peer.py`; `target`:
    how many times faster than Keras the fit is to be. `peers`: styles of `peers/torch_peers.py`. `steady`: pictures a second
    are compared as well, behind the first epoch. `peer_epochs`: what a peer runs in full, the rest is extrapolated.
    """

    data: str
    epochs: int
    overrides: tuple[str, ...]
    keras: dict[str, Any]
    target: float
    peers: dict[str, float | None] = field(default_factory=dict)
    steady: float | None = None
    peer_epochs: int = 3
    warm: bool = False


_MOBILENET = {"network": "mobilenetv2", "pool": "avg", "hidden": [256], "size": 224, "batch": 32}
_V3 = {"network": "mobilenetv3", "trainable": "all", "pool": "avg", "hidden": [128, 64], "size": 224, "batch": 20}
_CARDS = ("experiment=cards_mobilenetv3", "trainer.limit_train_batches=null")
_SMALL = {"network": "small", "hidden": [64], "size": 300, "batch": 32}
_AUGMENT = "dataset.augment={rotation_degrees: 20, shift: 0.1, zoom: 0.1, brightness: 0, horizontal_flip: false}"

JOBS: dict[str, Fit] = {
    "sports_frozen": Fit(
        "sports", 10, ("experiment=sports_mobilenetv2_frozen", "dataset.augment=null"),
        {**_MOBILENET, "trainable": "none", "lr": 1e-5}, 20,
        {"fastai": 80, "timm": None, "lightning": None}, warm=True,
    ),
    "sports_finetune": Fit(
        "sports", 10, ("experiment=sports_mobilenetv2_finetune", "dataset.augment=null"),
        {**_MOBILENET, "trainable": ["Conv_1", "Conv_1_bn"], "lr": 1e-4}, 8,
    ),
    "vgg16_frozen": Fit(
        "asl_alphabet", 15,
        ("experiment=asl_vgg16", "trainer.limit_train_batches=null", "trainer.limit_val_batches=null"),
        {"network": "vgg16", "trainable": "none", "pool": "flatten", "hidden": [], "size": 150, "batch": 128}, 0.8,
        peer_epochs=2,
    ),
    "cards_v3": Fit("cards", 15, (*_CARDS,), {**_V3}, 1.6, steady=2.0),
    "cards_v3_augmented": Fit("cards", 15, (*_CARDS, _AUGMENT), {**_V3, "augment": True}, 1.6, steady=2.0),
    "rps_cnn": Fit(
        "rock_paper_scissors", 10, ("experiment=rps_cnn",),
        {**_SMALL, "layers": [16, "pool", 32, "pool", 64, "pool"], "padding": "same"}, 1.0, steady=1.0, peer_epochs=4,
    ),
    "rps_cnn_batchnorm": Fit(
        "rock_paper_scissors", 10, ("experiment=rps_cnn_batchnorm", "dataset.augment=null"),
        {**_SMALL, "layers": [32, "bn", "pool", 64, "bn", "pool", 128, "bn", "pool"], "padding": "valid", "hidden": [128],
         "dense_bn": True, "l2": True, "dropout": 0.5, "optimizer": "rmsprop", "lr": 1e-4}, 1.0, steady=1.4, peer_epochs=3,
    ),
    "asl_cnn": Fit(
        "asl_alphabet", 20,
        ("experiment=asl_cnn", "trainer.limit_train_batches=null", "trainer.limit_val_batches=null"),
        {"network": "small", "hidden": [], "size": 150, "batch": 20, "layers": [32, "pool", 32, 16, 16, "pool"],
         "padding": "same"}, 1.0, steady=1.0, peer_epochs=4,
    ),
    "sign_mnist_mobilenet": Fit(
        "sign_mnist", 10, ("experiment=sign_mnist_mobilenet",),
        {"network": "mobilenet", "trainable": "none", "pool": "avg", "hidden": [256], "size": 80, "batch": 32, "steps": 100,
         "csv": True, "lr": 1e-4}, 4,
    ),
}  # fmt: skip
