"""Every committed YAML file composes to valid settings, and wrong settings raise one line."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from pytorch_lightning import Trainer
from support.fabricate import composed

from imgclf.cli.compose import CONF
from imgclf.config import KNOWN, CheckConfig, DownloadConfig, EvaluateConfig, RunConfig, TrainerConfig
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.datasets import datamodule_class
from imgclf.errors import ConfigError
from imgclf.models.backbone import check_name
from imgclf.preprocess import Preprocess

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]

# Keys that users type and scripts rely on.
PUBLIC_KEYS = """
data_dir image_size resize seed ckpt_path report task_name tags dataset.classes dataset.augment dataset.augment_val
dataset.holdout dataset.fraction dataset.batch_size dataset.num_workers model.backbone model.pretrained
model.weights model.freeze model.unfreeze_epoch model.head.hidden model.head.pool model.head.dropout
model.head.batch_norm model.head.activation model.head.l2 optimizer.name optimizer.lr optimizer.weight_decay
optimizer.backbone_lr scheduler.name scheduler.warmup_epochs trainer.accelerator trainer.devices trainer.precision
trainer.max_epochs trainer.limit_train_batches trainer.accumulate_grad_batches checkpoint.keep
checkpoint.every_minutes checkpoint.every_n_steps
""".split()  # noqa: SIM905, a list of 30 strings is no easier to read


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_each_choice_of_a_group_composes_to_valid_settings(group: str, choice: str) -> None:
    config = composed(f"{group}={choice}")
    assert issubclass(datamodule_class(config.dataset.name), ImageDataModule)
    check_name(config.model.backbone)
    trainer = {key: value for key, value in config.trainer.to_dict().items() if value is not None}
    inspect.signature(Trainer.__init__).bind(None, **trainer)
    assert isinstance(Preprocess.of(config.model.backbone), Preprocess)
    assert RunConfig.from_dict(config.to_dict()) == config  # config.yaml gives back the same settings


def test_trainer_settings_are_arguments_of_lightnings_trainer() -> None:
    assert set(TrainerConfig.field_names()) <= set(inspect.signature(Trainer.__init__).parameters)


def test_every_setting_has_a_help_sentence() -> None:
    for schema in (RunConfig, EvaluateConfig, CheckConfig, DownloadConfig):
        for name, item in schema.walk():
            assert item.metadata["help"].endswith("."), name


def test_every_group_and_data_set_has_its_yaml() -> None:
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
        assert composed(f"experiment={name}_best").dataset.name == name
    assert composed("checkpoint=x", config="evaluate").split == "test"
    assert composed(config="download").dataset.name == "cards"


@pytest.mark.parametrize("key", PUBLIC_KEYS)
def test_public_key_exists(key: str) -> None:
    assert RunConfig.expected(key)


def test_no_yaml_sets_num_classes_which_is_derived() -> None:
    for path in CONF.rglob("*.yaml"):
        assert "num_classes" not in path.read_text()


def test_pretrained_defaults_to_true_except_for_the_demo() -> None:
    assert composed().model.pretrained is True
    assert composed("data_dir=demo").model.pretrained is False
    assert composed("data_dir=demo", "model.pretrained=true").model.pretrained is True


def test_every_experiment_starts_with_source_command_cost_and_result() -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        head = path.read_text().splitlines()[:5]
        assert head[0] == "# @package _global_"
        assert head[1].startswith("# Source: "), path
        assert head[2] == f"# Command: imgclf train experiment={path.stem}", path
        assert head[3].startswith("# Cost: "), path
        assert head[4].startswith("# Result: "), path


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "epochs=3", "epochs: unknown key; did you mean trainer.max_epochs?"),
        ("train", "+epochs=3", "epochs: unknown key; did you mean trainer.max_epochs?"),
        ("train", "+datset=sports", "datset: unknown key; did you mean dataset?"),
        ("train", "dataset.batchsize=3", "dataset.batchsize: unknown key; did you mean dataset.batch_size?"),
        ("train", "dataset=carsd", "dataset=carsd: no such choice; did you mean cards?"),
        ("train", "++foo.bar=1", "foo.bar: unknown key; --help lists all keys"),
        ("train", "model=resnet18", "model=resnet18: no such choice; pass model=timm model.backbone=resnet18"),
        ("train", "model=mobilnetv2", "did you mean mobilenetv2?"),
        ("train", "dataset.splits.val={kind: foldrs}", "dataset.splits.val.kind='foldrs': did you mean folders?"),
        ("train", "+dataset=carsd", "dataset=carsd: no such choice; did you mean cards?"),
        ("train", "+hydra.foo=1", "hydra.foo: unknown key; did you mean hydra."),
        ("train", "dataset=cards,sports", "several values make a sweep; use `imgclf train -m`"),
        ("train", "scheduler.name=cosin", "scheduler.name='cosin': did you mean cosine?"),
        ("train", "dataset.splits.train.kindd=x", "did you mean dataset.splits.train.kind?"),
        ("train", "cards", "cards: expected key=value, such as dataset=cards"),
        ("train", "dataset=mushrooms", "--config-dir <folder> adds your own"),
        ("train", "dataset.augment.rotation=3", "did you mean dataset.augment.rotation_degrees?"),
        ("train", "hydra.run_dir=x", "hydra.run_dir: unknown key; did you mean hydra.run.dir?"),
        ("train", "trainer.accelerator=gppu", "trainer.accelerator='gppu': did you mean gpu?"),
        ("train", "trainer.precision=bf17", "trainer.precision='bf17': expected one of 32-true"),
        ("train", "+scheduler={name: plateau, warmup_epochs: 2}", "scheduler.name=plateau has no warm-up"),
        ("train", "seed=-1", "seed=-1: expected a whole number of at least 0"),
        ("train", "trainer.max_epochs=ten", "trainer.max_epochs=ten: expected a whole number"),
        ("train", "dataset.augment.zoom=2", "dataset.augment.zoom=2: expected a number of at least 0 and at most 1"),
        ("train", "checkpoint.keep=some", "checkpoint.keep='some': expected one of best, improved, all"),
        ("evaluate", "splt=val", "splt: unknown key; did you mean split?"),
        ("evaluate", "split=val", "checkpoint: no value; pass checkpoint=<value>"),
        ("check", "wrokers=2", "wrokers: unknown key; did you mean workers?"),
    ],
)
def test_wrong_override_raises_one_line_with_the_key_and_the_expected_value(
    command: str, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        composed(override, config=command)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_unknown_key_in_a_users_yaml_is_named_with_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("defaults: [base]\nname: mine\nclasess: [a]\n")
    command = [sys.executable, "-m", "imgclf.train", "--config-dir", str(tmp_path), "dataset=mine"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip() == "imgclf: dataset.clasess: unknown key; did you mean dataset.classes?"


def test_suggestion_is_the_nearest_key_of_any_level() -> None:
    assert RunConfig.suggest("max_epochs") == "did you mean trainer.max_epochs?"
    assert RunConfig.suggest("batch_size") == "did you mean dataset.batch_size?"
    assert RunConfig.suggest("zzzzzz") == "--help lists all keys"


@pytest.mark.parametrize("kind", [int, float, bool, str])
def test_settings_refuse_values_of_another_type(kind: type) -> None:
    for name, item in RunConfig.walk():
        if item.type == kind.__name__ and "." not in name:
            with pytest.raises(ConfigError, match=name):
                RunConfig.from_dict({name: [None]})


def test_check_as_text_means_what_the_word_says() -> None:
    for word, value in {"false": False, "true": True, "exclude": "exclude"}.items():
        assert RunConfig(check=word).check == composed(f"check='{word}'").check == value
    with pytest.raises(ConfigError, match=r"^check='no': expected one of false, true, exclude"):
        RunConfig(check="no")
