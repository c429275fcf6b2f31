"""The jobs that are a training run: the preset, what is changed, who else runs it, and what ratio is aimed at."""

from dataclasses import dataclass
from typing import Any

from bench import Bench, Run

__all__ = ["FITS", "Fit", "Target", "measure_fit"]


@dataclass(frozen=True)
class Target:
    """imgclf is to be `at_least` so many times as fast as `peer` at `what`: fit, whole, whole warm, or images/s."""

    what: str
    peer: str
    at_least: float | None


@dataclass(frozen=True)
class Fit:
    """A preset with `overrides`, run by imgclf (with `warm`, once more on the same caches) and by each of `peers`."""

    experiment: str
    overrides: tuple[str, ...]
    peers: tuple[str, ...]
    targets: tuple[Target, ...]
    warm: bool = False


PLAIN = ("dataset.augment=null",)
CARDS = ("trainer.limit_train_batches=null", "trainer.max_epochs=3")  # of 15
TURNED = ("dataset.augment={rotation_degrees:20,shift:0.1,zoom:0.1}",)
KERAS_AHEAD = (Target("images/s", "keras", 1.0), Target("fit", "keras", None))
CARDS_TARGETS = (Target("images/s", "keras", 2.0), Target("fit", "keras", 1.6))

FITS = {
    "sports_frozen": Fit(
        "sports_mobilenetv2_frozen", PLAIN, ("keras", "fastai", "timm_loop", "lightning_plain"),
        (Target("fit", "keras", 20), Target("fit", "fastai", 80), Target("fit", "timm_loop", None),
         Target("fit", "lightning_plain", None), Target("whole", "keras", 8), Target("whole warm", "keras", 20),
         Target("whole", "fastai", None), Target("whole", "timm_loop", None), Target("whole", "lightning_plain", None)),
        warm=True,
    ),
    "sports_finetune": Fit(
        "sports_mobilenetv2_finetune", PLAIN, ("keras", "lightning_plain"),
        (Target("fit", "keras", 8), Target("fit", "lightning_plain", None)),
    ),
    "cards_v3": Fit(
        "cards_mobilenetv3", (*PLAIN, *CARDS), ("keras", "timm_loop"),
        (*CARDS_TARGETS, Target("images/s", "timm_loop", None)),
    ),
    "cards_v3_augmented": Fit(
        "cards_mobilenetv3", (*TURNED, *CARDS), ("keras",),
        CARDS_TARGETS,
    ),
    "rps_cnn": Fit("rps_cnn", (), ("keras",), KERAS_AHEAD),
    "rps_cnn_batchnorm": Fit(
        "rps_cnn_batchnorm", (*PLAIN, "callbacks=none"), ("keras",),
        (Target("images/s", "keras", 1.4), Target("fit", "keras", None)),
    ),
    "asl_cnn": Fit("asl_cnn", (), ("keras",), KERAS_AHEAD),
    "sign_mnist_mobilenet": Fit(
        "sign_mnist_mobilenet", (), ("keras",),
        (Target("setup + fit", "keras", 4), Target("fit", "keras", None), Target("whole", "keras", None)),
    ),
}  # fmt: skip


def measure_fit(bench: Bench, fit: Fit) -> dict[str, Any]:
    """imgclf cold (and warm) and the peers by turns, so that a machine that slows down slows all."""
    overrides = bench.overrides(fit.experiment, fit.overrides)
    job = bench.prepare(overrides)
    pictures = job["pictures"]
    runs: list[Run] = []
    for repeat in range(bench.repeats):
        cache = bench.new("cache")
        for variant in ("cold", "warm") if fit.warm else ("cold",):
            runs.append(bench.guarded("imgclf", variant, lambda variant=variant, cache=cache: bench.imgclf(
                overrides, cache, pictures, variant)))  # fmt: skip
        for who in fit.peers[repeat :: bench.repeats]:
            runs.append(bench.guarded(who, "", lambda who=who: bench.peer(who, job)))
    about = {
        key: job[key] for key in ("epochs", "batch_size", "image_size", "pictures", "parameters", "steps", "augment")
    }
    return {"about": about, "runs": runs}
