"""Every committed YAML composes and fits the code that takes it."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer
from support.fabricate import composed

from imgclf.cli.hydra_app import CONF
from imgclf.data import KNOWN, datamodule_class
from imgclf.data.augment import Augment
from imgclf.models.backbone import check_name
from imgclf.models.head import Head
from imgclf.preprocess import Preprocess
from imgclf.signals import Signals
from imgclf.training.checkpointing import CheckpointCallback

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]

# What people type, and scripts rely on.
PUBLIC_KEYS = """
data_dir image_size resize seed ckpt_path report task_name tags dataset.classes dataset.augment dataset.augment_val
dataset.holdout dataset.fraction dataset.batch_size dataset.num_workers model.backbone model.pretrained
model.weights model.freeze model.unfreeze_epoch model.head.hidden model.head.pool model.head.dropout
model.head.batch_norm model.head.activation model.head.l2 optimizer.name optimizer.lr optimizer.weight_decay
optimizer.backbone_lr scheduler.name scheduler.warmup_epochs trainer.accelerator trainer.devices trainer.precision
trainer.max_epochs trainer.limit_train_batches trainer.accumulate_grad_batches checkpoint.keep
checkpoint.every_minutes checkpoint.every_n_steps
""".split()  # noqa: SIM905, a list of 30 strings is no easier to read


def bind(function: Any, options: dict[str, Any], *positional: Any) -> None:
    """Fail as a call would, without calling."""
    inspect.signature(function).bind(*positional, **options)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_fits(group: str, choice: str) -> None:
    settings = composed(f"{group}={choice}")
    dataset = dict(settings["dataset"])
    bind(datamodule_class(dataset["name"]).__init__, dataset, None, "root")
    Augment.from_dict(dataset["augment"] or {})
    check_name(settings["model"]["backbone"])
    bind(Head.__init__, settings["model"]["head"], None, (8, 2, 2), 3)
    bind(Trainer.__init__, settings["trainer"], None)
    bind(CheckpointCallback.__init__, settings["checkpoint"], None, Path(), Signals())
    assert isinstance(Preprocess.of(settings["model"]["backbone"]), Preprocess)


def test_all_groups_and_data_sets_are_there() -> None:
    assert GROUPS == [
        "callbacks",
        "dataset",
        "debug",
        "experiment",
        "hparams_search",
        "hydra",
        "logger",
        "model",
        "trainer",
    ]
    for name in KNOWN:
        assert (CONF / "dataset" / f"{name}.yaml").is_file()
        assert composed(f"experiment={name}_best")["dataset"]["name"] == name
    assert composed("checkpoint=x", config="evaluate")["split"] == "test"
    assert composed(config="download")["dataset"]["name"] == "cards"


@pytest.mark.parametrize("key", PUBLIC_KEYS)
def test_public_keys(key: str) -> None:
    value: Any = composed()
    for part in key.split("."):
        assert part in value
        value = value[part]


def test_no_yaml_restates_what_is_derived() -> None:
    for path in CONF.rglob("*.yaml"):
        assert "num_classes" not in path.read_text()


def test_pretrained_is_the_default_but_not_for_the_demo() -> None:
    assert composed()["model"]["pretrained"] is True
    assert composed("data_dir=demo")["model"]["pretrained"] is False
    assert composed("data_dir=demo", "model.pretrained=true")["model"]["pretrained"] is True


def test_every_experiment_opens_with_source_command_cost_and_result() -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        head = path.read_text().splitlines()[:5]
        assert head[0] == "# @package _global_"
        assert head[1].startswith("# Source: "), path
        assert head[2] == f"# Command: imgclf train experiment={path.stem}", path
        assert head[3].startswith("# Cost: "), path
        assert head[4].startswith("# Result: "), path
