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


@pytest.mark.parametrize(("command", "at_least"), [("train", 90), ("evaluate", 8), ("check", 20)])
def test_help_shows_every_setting_with_its_sentence(command: str, at_least: int) -> None:
    text = help_text(command, ["checkpoint=best.ckpt"] if command == "evaluate" else [])
    assert "usage: imgclf" in text
    lines = [line for line in text.splitlines() if ": " in line and "#" in line]
    assert len(lines) >= at_least
    assert ("experiment: " in text) == (command == "train")


def test_help_of_download_names_the_data_sets() -> None:
    assert "rock_paper_scissors, sign_mnist, sports" in help_text("download", [])
