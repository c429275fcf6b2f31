"""The one word of a command line that is a model, and not `key=value`; and the printed line that resumes a run."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from support.fabricate import TINY
from support.odd_names import NAMES

import imgclf
from imgclf.cli.compose import CONF, check_overrides, split_flags
from imgclf.cli.hydra_app import _with_key
from imgclf.console import printable
from imgclf.errors import CheckpointError, ConfigError
from imgclf.files.run_folder import find_resumable, find_run
from imgclf.training.resume import resume_command


@pytest.mark.parametrize(
    "name", ["run", "it's [a] b=c", "./lr=0.1", "a,b", "back\\slash", "back\\'s", "ends\\", "${x}", "Größe 1"]
)
def test_name_of_a_model_reaches_hydra_as_it_was_typed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    before, word, after = _with_key(["split=val", name, "hydra/launcher=basic"], "resume")
    override = OverridesParser.create().parse_override(word)
    read = OmegaConf.create({"resume": override.value()})  # interpolates
    assert override.key_or_group == "resume" and Path(read.resume) == Path(name)
    assert (before, after) == ("split=val", "hydra/launcher=basic")
    assert _with_key([word, "+seed=1"], "resume") == [word, "+seed=1"], "as Lightning repeats it"


def test_values_of_flags_are_no_models_and_two_models_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    words = ["--config-dir", "mine", "run", "--cfg", "job"]
    assert _with_key(words, "resume") == ["--config-dir", "mine", "resume='run'", "--cfg", "job"]
    assert _with_key(["--help"], "resume") == ["--help"]
    for wrong, message in (
        (["run", "run"], "run and run came"),
        (["run", "resume=x"], "came"),
        ([], "no run is given"),
    ):
        with pytest.raises(ConfigError, match=message):
            _with_key(wrong, "resume")


def composed_run(words: list[str]) -> tuple[str, str]:
    """Return the folder and `resume` that Hydra composes for the words after `imgclf resume`."""
    checked = check_overrides("train", _with_key(split_flags("train", words), "resume"))
    with hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        config = hydra.compose("train", checked, return_hydra_config=True)
    return os.path.abspath(config.hydra.run.dir), config.resume  # noqa: PTH100, as Hydra does


@pytest.mark.skipif(os.name == "nt", reason="Windows refuses most of these names")
@pytest.mark.trust("printed lines that resume runs in folders with odd names", "another folder, or a mistake")
def test_the_printed_line_resumes_the_run_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        *NAMES,
        "~x",
        "--resume",
        "lr=0.1",
        "key=",
        "latest",
        "true",
        "a:b",
        "@at",
        "+plus",
        "a\\${b}",
        "!bang",
        "...",
    ]
    for name in names:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
        line = resume_command(tmp_path / name).removeprefix("resume it with: ")
        if printable(name) == name:
            words = shlex.split(line)
        else:  # Python's shlex has no `$'...'`
            done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
            words = [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]
        assert words[:2] == ["imgclf", "resume"]
        (word,) = _with_key(split_flags("train", words[2:]), "resume")
        override = OverridesParser.create().parse_override(word)
        read = OmegaConf.create({"resume": override.value()})  # interpolates
        assert override.key_or_group == "resume" and find_run(read.resume) == tmp_path / name
        if name in ("Größe", "back\\slash", "${x}", NAMES[0], "new\nline"):  # in full, which takes longer
            folder, resume = composed_run(words[2:])
            assert folder == str(tmp_path / name) and find_run(resume) == tmp_path / name
    folder, resume = composed_run(["./~x"])
    assert folder == str(tmp_path / "~x") and find_run(resume).absolute() == tmp_path / "~x"
    record_property("tried", len(names) + 1)


@pytest.mark.parametrize("name", ["Größe ä", "back\\slash", "it's"])
def test_a_new_run_may_have_a_folder_of_any_name(name: str) -> None:
    checked = check_overrides("train", [f"hydra.run.dir={name}", f"hydra.sweep.dir={name}"])
    with hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        config = hydra.compose("train", checked, return_hydra_config=True)
    assert config.hydra.run.dir == config.hydra.sweep.dir == name


@pytest.fixture
def run_of_two_epochs(colours: Path, tmp_path: Path) -> Path:
    """Folder of a run with a checkpoint of each of its two epochs."""
    place = f"hydra.run.dir={tmp_path / 'runs' / 'Größe 1'}"
    return imgclf.train(*TINY, "checkpoint.keep=all", place, data_dir=colours).folder


def test_a_run_is_resumed_through_a_parent_folder_and_behind_a_link(
    run_of_two_epochs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "inner")
    shutil.copytree(run_of_two_epochs, tmp_path / "deep" / "run")
    monkeypatch.chdir(run_of_two_epochs / "checkpoints")
    for place in (run_of_two_epochs.parent / "x" / ".." / "Größe 1", Path(".."), Path("../../Größe 1")):
        (run_of_two_epochs.parent / "x").mkdir(exist_ok=True)
        assert imgclf.train(resume=place).folder == run_of_two_epochs
    assert composed_run([".."])[0] == str(run_of_two_epochs)
    assert imgclf.train(resume=tmp_path / "link" / ".." / "run").folder == tmp_path / "deep" / "run"


def test_a_run_is_never_resumed_from_another_checkpoint_than_the_one_that_is_named(
    run_of_two_epochs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = run_of_two_epochs / "checkpoints"
    before = {path: path.read_bytes() for path in run_of_two_epochs.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as raised:
        imgclf.train(resume=checkpoints / "epoch_001.ckpt")
    assert {path: path.read_bytes() for path in run_of_two_epochs.rglob("*") if path.is_file()} == before
    message = str(raised.value)
    assert message.startswith(
        f"{checkpoints / 'epoch_001.ckpt'}: a run is resumed from its newest checkpoint, which is last.ckpt"
    )
    assert find_resumable(checkpoints / "epoch_001.ckpt") == checkpoints / "epoch_001.ckpt"
    imgclf.train(resume=checkpoints / "last.ckpt")
    imgclf.train(resume=checkpoints / "epoch_002.ckpt")  # the same state
    assert capsys.readouterr().out.count("this run is finished, after 2 epochs") == 2
    (checkpoints / "last.ckpt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        imgclf.train(resume=checkpoints / "last.ckpt")
    words = shlex.split(message.rpartition("begin a new run from this one: ")[2])
    assert words[:2] == ["imgclf", "train"]
    again = imgclf.train(*words[2:])  # what the message says to copy
    assert again.folder != run_of_two_epochs and len(again.history) == 2
    assert "continues in epoch 2" in capsys.readouterr().out
