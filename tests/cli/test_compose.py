"""Overrides of a command line, checked before Hydra composes them."""

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException

from imgclf.cli.compose import check_overrides, compose_config, explain_error, help_text, split_flags
from imgclf.cli.hydra_app import _help_wanted
from imgclf.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seed=3", "seed=3"),
        ("+seed=3", "seed=3"),
        ("~callbacks.early_stopping", "callbacks.early_stopping=null"),
        ("dataset.augment.zoom=0.1", "++dataset.augment.zoom=0.1"),
        ("optimizer.options.momentum=0.9", "++optimizer.options.momentum=0.9"),
        ("+optimizer.options.momentum=0.9", "++optimizer.options.momentum=0.9"),
        ("optimizer.options={momentum: 0.9}", "++optimizer.options={momentum: 0.9}"),
        ("+dataset.splits.val={kind: flat}", "++dataset.splits.val={kind: flat}"),
        ("dataset=cards", "dataset=cards"),
        ("hydra.run.dir=out", "hydra.run.dir=out"),
        ("--config-dir", "--config-dir"),
    ],
)
def test_overrides_are_passed_on_as_hydra_takes_them(word: str, expected: str) -> None:
    assert check_overrides("train", [word]) == [expected]


def test_the_value_of_a_flag_is_no_override() -> None:
    assert check_overrides("train", ["--config-dir", "my=folder"]) == ["--config-dir", "my=folder"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=1e-3,fast"], "optimizer.lr=fast: expected a number"),
        (["seed=0,-1"], "seed=-1: expected a whole number of at least 0"),
        (["dataset=cards,sports", "loss.label_smoothing=0.1,7"], "loss.label_smoothing=7"),
        (["checkpoint.keep=best,some"], "checkpoint.keep='some': expected one of best, improved, all"),
    ],
)
def test_a_sweep_with_an_impossible_value_is_refused_before_its_first_trial(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        check_overrides("train", ["-m", *overrides])


def test_a_sweep_of_possible_values_is_passed_on() -> None:
    words = [
        "-m",
        "dataset=cards,sports",
        "optimizer.lr=1e-4,1e-3",
        "dataset.augment=null,{zoom: 0.1}",
        "seed=range(1,4)",
    ]
    assert check_overrides("train", words) == words


@pytest.mark.parametrize(("command", "at_least"), [("train", 90), ("evaluate", 8), ("check", 10), ("download", 0)])
def test_help_shows_every_setting_with_its_sentence_in_80_columns(
    command: str, at_least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_text(command, ["checkpoint=best.ckpt"] if command == "evaluate" else [])
    assert f"usage: imgclf {command} " in text
    examples = text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 3 and all(line.startswith("  imgclf ") for line in examples)
    assert max(map(len, text.splitlines())) <= 80
    settings = text.partition("what they mean:\n")[2].splitlines()
    assert sum(not line.startswith(" " * 30) and not line.endswith(":") for line in settings) >= at_least
    assert ("experiment: " in text) == (command == "train")
    assert "${" not in text


def test_help_of_check_leaves_out_what_only_training_uses() -> None:
    text = help_text("check", [])
    assert "val_fraction" in text and not any(name in text for name in ("batch_size", "augment", "num_workers"))


def test_help_shows_the_choices_and_values_of_the_users_own_yaml_files(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mushrooms.yaml").write_text("defaults: [base]\nname: mushrooms\nbatch_size: 7\n")
    overrides = _help_wanted(["--help", "--config-dir", str(tmp_path), "dataset=mushrooms"])
    assert overrides is not None
    text = help_text("train", overrides)
    assert "list, mushrooms, pixel_csv" in text and "batch_size: 7" in text


def test_help_of_download_names_the_data_sets_of_kaggle_and_no_settings() -> None:
    text = help_text("download", [])
    assert "sign_mnist, sports" in text and "folders" not in text and "batch_size" not in text


@pytest.mark.parametrize("flags", [["-m"], ["--multirun"], ["-m", "--config-dir", "own"], ["-m", "--config-dir=own"]])
def test_flags_may_stand_anywhere_in_the_line(flags: list[str]) -> None:
    overrides = ["dataset=cards", "seed=0,1", "hydra.sweep.dir=it"]
    for position in range(len(overrides) + 1):
        words = split_flags("train", [*overrides[:position], *flags, *overrides[position:]])
        parsed = get_args_parser().parse_args(words)
        assert parsed.overrides == overrides and parsed.multirun
        assert parsed.config_dir == ("own" if len(flags) > 1 else None)
    apart = split_flags("train", ["seed=0,1", "-m", "dataset=mine", "--config-dir", "own"])
    assert apart == ["-m", "--config-dir", "own", "seed=0,1", "dataset=mine"]


def test_flag_and_value_in_one_word_are_two() -> None:
    assert split_flags("train", ["--config-dir=mine", "seed=3"]) == ["--config-dir", "mine", "seed=3"]


@pytest.mark.parametrize(
    ("flag", "way"),
    [
        ("--hepl", "did you mean --help?"),
        ("--epochs", "did you mean trainer.max_epochs?"),
        ("--dataset", "write dataset=<value>"),
        ("--learning-rate=1", "did you mean optimizer.lr?"),
    ],
)
def test_unknown_flag_is_answered_with_the_key(flag: str, way: str) -> None:
    with pytest.raises(ConfigError) as raised:
        split_flags("train", [flag])
    assert str(raised.value) == f"{flag}: no such flag; {way}"


@pytest.mark.parametrize("value", ["~/images", "my cards [x]", "it's"])
def test_text_that_the_grammar_of_hydra_refuses_is_quoted(value: str) -> None:
    assert compose_config("train", [f"data_dir={value}"]).data_dir == value


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("Could not load 'hydra/launcher/ray'.", "ray"),
        ("Could not find 'hydra/sweeper/optuna'", "optuna"),
        ("In 'hydra/launcher/local': Could not load 'hydra/launcher/submitit_local'.", "submitit"),
    ],
)
def test_missing_launcher_or_sweeper_is_answered_with_its_extra(text: str, package: str) -> None:
    assert f'`pip install -e ".[{package}]"`' in explain_error("train", ConfigCompositionException(text))
