"""All of timm's optimizers: each trains, and is resumed to the bit, or is refused before anything is written."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from support.fabricate import TINY, Batches, composed
from timm.optim import list_optimizers
from torch import Tensor

from imgclf.config import OptimizerConfig
from imgclf.errors import ConfigError
from imgclf.preprocess import Preprocess
from imgclf.training.classifier import ImageClassifier
from imgclf.training.optim import check_optimizer
from imgclf.training.run import train

MODEL = {"backbone": "small_cnn", "backbone_kwargs": {"layers": [4, "pool"]}, "head": {"hidden": [4]}}
BATCH = (torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 1]))
NAMES = [str(name) for name in list_optimizers()]
FOR_GPUS = tuple(name for name in NAMES if name.startswith(("bnb", "fused")))
UNSUITED = {"adahessian": "needs second derivatives", "kron": "compiles its step", "kronc": "", "kronw": ""}


def step(classifier: ImageClassifier, optimizer: torch.optim.Optimizer, number: int) -> None:
    """Make one update as Lightning does: the closure has the backward pass."""

    def closure() -> Tensor:
        loss = classifier.training_step(BATCH, number)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]


def classifier_of(name: str) -> ImageClassifier:
    return ImageClassifier(MODEL, ["a", "b", "c"], Preprocess(size=8), optimizer={"name": name})


def refused_by(name: str) -> str | None:
    """Return the line with which a run refuses the optimizer, None for one that it takes."""
    try:
        check_optimizer(classifier_of(name).optimizer_config)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.trust("optimizers of timm", "a traceback, or a resumed run that differs")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_optimizer_trains_and_continues_to_the_bit_or_is_refused(name: str) -> None:
    if refusal := refused_by(name):
        assert name in UNSUITED or (name in FOR_GPUS and not torch.cuda.is_available()), refusal
        assert "\n" not in refusal and refusal.startswith(f"optimizer.name={name}")
        return
    assert name not in UNSUITED
    classifier = classifier_of(name)
    optimizer = classifier.configure_optimizers()
    before = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    for number in range(2):
        step(classifier, optimizer, number)
    after = classifier.network.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert sum(not torch.equal(before[key], value) for key, value in after.items()) >= 4  # of 3 matrices, 3 vectors
    stored = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "network": after}, stored)
    saved: dict[str, Any] = torch.load(io.BytesIO(stored.getvalue()), weights_only=True)
    resumed = classifier_of(name)
    resumed.network.load_state_dict(saved["network"])
    again = resumed.configure_optimizers()
    again.load_state_dict(saved["optimizer"])
    for number in range(2, 5):
        step(classifier, optimizer, number)
        step(resumed, again, number)
    for key, value in classifier.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key]), key


@pytest.mark.parametrize("options", [{"differentiable": True}, {"fused": True, "foreach": True}])
def test_options_that_no_step_can_be_taken_with_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.name=adamw, optimizer.options=\{"):
        check_optimizer(OptimizerConfig(options=options))


@pytest.mark.parametrize("name", ["adahessian", "kronw"])
def test_unsuited_optimizer_is_refused_by_the_command_and_by_lightning(name: str, tmp_path: Path) -> None:
    message = UNSUITED["kron" if "kron" in name else name]
    with pytest.raises(ConfigError, match=f"{message}.*; pass another, such as optimizer.name=adamw"):
        train(composed(*TINY, "data_dir=/nowhere", f"optimizer.name={name}"), tmp_path / "run", [])
    with pytest.raises(ConfigError, match=message):
        Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path).fit(classifier_of(name), Batches(BATCH))
    assert not list(tmp_path.iterdir())


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOR_GPUS and name not in UNSUITED])
def test_optimizer_trains_a_whole_run(name: str, colours: Path, tmp_path: Path) -> None:
    words = (f"data_dir='{colours}'", "trainer.max_epochs=1", "trainer.gradient_clip_val=1", f"optimizer.name={name}")
    train(composed(*TINY, *words), tmp_path / "run", [])
    assert (tmp_path / "run" / "metrics.json").is_file()
