"""Overrides of a command line, checked before Hydra composes them."""

import pytest

from imgclf.cli.compose import check_overrides, help_text
from imgclf.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seed=3", "seed=3"),
        ("+seed=3", "seed=3"),
        ("~callbacks.early_stopping", "callbacks.early_stopping=null"),
        ("dataset.augment.zoom=0.1", "++dataset.augment.zoom=0.1"),
        ("+optimizer.options.momentum=0.9", "+optimizer.options.momentum=0.9"),
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


@pytest.mark.parametrize("command", ["train", "evaluate", "check", "download"])
def test_help_shows_every_setting_with_its_sentence(command: str) -> None:
    overrides = ["checkpoint=best.ckpt"] if command == "evaluate" else []
    text = help_text(command, overrides)
    assert ("usage: imgclf" in text and "# Name of the data set" in text) or command == "evaluate"
    lines = [line for line in text.splitlines() if ": " in line and "#" in line]
    assert len(lines) > {"train": 90, "evaluate": 8, "check": 20, "download": 15}[command]
    assert "experiment: " in text if command == "train" else "experiment: " not in text
