"""An empty value of a path or a name, as an unset variable of the shell leaves it, is an error of every command."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import imgclf
from imgclf import cache, compare, predict, sweep
from imgclf.cli.compose import COMMANDS, FLAGS_WITH_VALUE, check_overrides, split_flags
from imgclf.errors import ConfigError, ImgclfError
from imgclf.files.run_folder import find_checkpoint, find_resumable, find_run
from imgclf.inference.torch_runner import load_imagenet
from imgclf.schema import Settings

EMPTY = "the value is empty; give one, or leave it out (is a variable of the shell unset?)"


def texts(schema: type[Settings]) -> list[str]:
    """Return the dotted keys of all settings that take text, and of Hydra's folders."""
    keys = [name for name, _ in schema.walk() if "text" in (schema.expected(name) or "") and ".splits." not in name]
    return [*keys, "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"]


@pytest.mark.trust("empty values of paths and names, in every command and in Python", "a run that begins, or a guess")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_text_on_a_command_line_needs_a_value(
    command: str, record_property: Callable[[str, object], None]
) -> None:
    keys = texts(COMMANDS[command])
    forms = [
        form for key in keys for form in (f"{key}=", f"{key}=''", f'{key}=""', f"{key}= ", f"+{key}=", f"++{key}=")
    ]
    for word in forms:
        for check in (check_overrides, split_flags):
            with pytest.raises(ConfigError) as raised:
                check(command, [word])
            assert str(raised.value) == f"{word.lstrip('+').partition('=')[0]}=: {EMPTY}"
    for flag in FLAGS_WITH_VALUE:
        for words in ([flag, ""], [f"{flag}="]):
            with pytest.raises(ConfigError, match="the value is empty"):
                split_flags(command, words)
    with pytest.raises(ConfigError, match="the value is empty"):
        split_flags(command, [""])
    assert command != "train" or {"resume", "ckpt_path", "data_dir", "model.weights", "dataset.exclude"} <= set(keys)
    record_property("tried", len(forms) + 2 * len(FLAGS_WITH_VALUE) + 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_text_in_a_yaml_file_needs_a_value(command: str) -> None:
    for key in texts(COMMANDS[command])[:-3]:
        values: object = ""
        for name in reversed(key.split(".")):
            values = {name: values}
        with pytest.raises(ConfigError, match=r"the value is empty|expected one of"):
            COMMANDS[command].from_dict(values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"dataset\.exclude: the value is empty"):
        COMMANDS["train"].from_dict({"dataset": {"exclude": ["train:a.png", ""]}})


@pytest.mark.trust("empty values of paths and names, in every command and in Python", "a run that begins, or a guess")
@pytest.mark.parametrize(
    ("main", "words", "name"),
    [
        (predict.main, ["", "x.jpg"], "an argument"),
        (predict.main, ["model", ""], "an argument"),
        (predict.main, ["model", "x.jpg", "--grid", ""], "--grid"),
        (predict.main, ["model", "x.jpg", "--save-to", " "], "--save-to"),
        (predict.main, ["model", "x.jpg", "--explain="], "--explain"),
        (predict.main, ["--imagenet", "", "x.jpg"], "--imagenet"),
        (predict.main, ["--imagenet", "resnet18", "--weights=", "x.jpg"], "--weights"),
        (predict.main, ["model", "--webcam", ""], "--webcam"),
        (compare.main, [""], "an argument"),
        (compare.main, ["run", "--out", ""], "--out"),
        (sweep.main, [""], "an argument"),
        (cache.main, ["clear", ""], "an argument"),
    ],
    ids=lambda value: " ".join(map(repr, value)) if isinstance(value, list) else "",
)
def test_every_argument_needs_a_value(
    main: Callable[[list[str]], int], words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"imgclf: {name}: {EMPTY}") and err.count("\n") == 1


@pytest.mark.trust("empty values of paths and names, in every command and in Python", "a run that begins, or a guess")
@pytest.mark.parametrize(
    "call",
    [
        lambda: imgclf.train(resume=""),
        lambda: imgclf.train("resume="),
        lambda: imgclf.train(dataset="folders", data_dir=""),
        lambda: imgclf.train(ckpt_path=""),
        lambda: imgclf.load(""),
        lambda: imgclf.open_run(""),
        lambda: imgclf.Run(""),
        lambda: imgclf.ImageDataModule(""),
        lambda: load_imagenet("resnet18", weights=""),
        lambda: find_run(" "),
        lambda: find_checkpoint(""),
        lambda: find_resumable(""),
    ],
)
def test_every_path_in_python_needs_a_value(
    call: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImgclfError, match="the value is empty"):
        call()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_of_an_image_is_not_the_current_folder(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_run.parent)
    with pytest.raises(imgclf.ImageError, match="an image's path is empty"):
        imgclf.load(tiny_run).predict("")


@pytest.mark.parametrize("words", [["train", "resume=", "dataset=cards"], ["resume", ""], ["evaluate", "checkpoint="]])
def test_commands_with_an_empty_value_write_nothing(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imgclf", *words], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and EMPTY in done.stderr
    assert list(tmp_path.iterdir()) == []
