"""README and the guides name only commands, flags and settings that exist, and README stays short."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.fabricate import ROOT, composed

from imgclf.__main__ import COMMANDS
from imgclf.config import CheckConfig, DatasetConfig, DownloadConfig, EvaluateConfig, RunConfig
from imgclf.errors import ConfigError

README, CONF = ROOT / "README.md", ROOT / "conf"
PAGES = [README, *sorted((ROOT / "docs" / "guide").glob("*.md"))]
CONFIGS = {"train": RunConfig, "evaluate": EvaluateConfig, "check": CheckConfig, "download": DownloadConfig}
KEYS = {name for config in CONFIGS.values() for name, _ in config.walk()}
GROUPS = {name.partition(".")[0] for name in KEYS if "." in name}
DOCS = [*PAGES, *sorted((ROOT / "docs").glob("*.md"))]
SETTING = re.compile(r"\+?[a-z][\w/]*(\.\w+)*=\S+")
DOTTED = re.compile(r"([a-z]\w*)(\.\w+)+")
# Their choices need packages that are extras; each has a YAML of that name.
OPTIONAL = ("hydra/launcher", "hparams_search", "hydra.launcher.")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each `imgclf ...` line, without what stands before and behind it in a pipe."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" | "):
                words = shlex.split(part, comments=True)
                if words[:1] == ["imgclf"]:
                    yield words[1:]


def inline(page: Path) -> Iterator[str]:
    """Yield the code spans outside blocks, and the words of the comments in YAML."""
    for comment in re.findall(r"# (.*)", "".join(blocks(page, "yaml"))):
        yield from re.findall(r"[\w.]*\w", comment)
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


def first_value(setting: str) -> str:
    """Return a sweep's setting with the first of its values, any other as it is."""
    key, _, value = setting.partition("=")
    return setting if value[:1] in ("[", "{", "'", '"') else f"{key}={value.partition(',')[0]}"


def settings(words: list[str]) -> list[str]:
    """Return the settings among `words` that Hydra can compose here; placeholders are left out."""
    complete = [word for word in words if SETTING.fullmatch(word) and "<" not in word and "..." not in word]
    for word in complete:
        key, _, value = word.partition("=")
        if key in ("hydra/launcher", "hparams_search"):
            assert (CONF / key / f"{value.partition(',')[0]}.yaml").is_file(), word
    return [first_value(word) for word in complete if not word.startswith(OPTIONAL)]


def help_of(command: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", f"imgclf.{command}", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_readme_has_at_most_1500_words() -> None:
    assert len(README.read_text().split()) <= 1500


def test_readme_opens_with_the_two_scripts() -> None:
    assert [block.strip() for block in blocks(README, "bash")[:2]] == ["sh scripts/first_run.sh", "sh scripts/test.sh"]


def test_readme_links_every_guide() -> None:
    text = README.read_text()
    for page in PAGES[1:]:
        assert f"(docs/guide/{page.name})" in text, page.name


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_links_and_paths_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:imgclf|conf|scripts|tests)/[\w/.]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        assert words[0] in COMMANDS, words
    for span in inline(page):
        if span.startswith("imgclf ") and span.split()[1].islower():
            assert span.split()[1] in COMMANDS, span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_bash_blocks_compose(page: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    for text in blocks(page, "yaml"):
        (tmp_path / "dataset" / "mushrooms.yaml").write_text(text)
        DatasetConfig.from_dict({key: value for key, value in yaml.safe_load(text).items() if key != "defaults"})
    for command, *words in commands(page):
        if command in CONFIGS:
            search = [f"hydra.searchpath=[file://{tmp_path}]"] if "--config-dir" in words else []
            composed(*search, *settings(words), *required(command, words), config=command)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "python.md"], ids=lambda page: page.name)
def test_settings_in_the_text_exist(page: Path) -> None:
    for span in dict.fromkeys(inline(page)):
        words = shlex.split(span) if "=" in span and span != "key=value" else []
        if words and all(SETTING.fullmatch(word) for word in words) and (chosen := settings(words)):
            assert any(composes(command, chosen) for command in CONFIGS), span
        elif (match := DOTTED.fullmatch(span)) and match[1] in GROUPS and not span.endswith(".onnx"):
            assert span in KEYS, span


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in CONFIGS])
def test_flags_exist(command: str) -> None:
    known = set(re.findall(r"--[a-z-]+", help_of(command)))
    for page in PAGES:
        for name, *words in commands(page):
            if name == command:
                flags = {word for word in words if word.startswith("--")}
                assert flags <= known, f"{page.name}: {flags - known}"


def test_every_flag_of_predict_is_explained() -> None:
    known = set(re.findall(r"--[a-z-]+", help_of("predict"))) - {"--help"}
    spans = " ".join(inline(ROOT / "docs" / "guide" / "predict.md"))
    assert known - set(re.findall(r"--[a-z-]+", spans)) == set()
    assert set(re.findall(r"--[a-z-]+", spans)) - known <= set(re.findall(r"--[a-z-]+", help_of("compare")))


def required(command: str, words: list[str]) -> list[str]:
    """Return what `command` cannot do without, where `words` do not have it."""
    given = any(word.startswith("checkpoint=") for word in settings(words))
    return ["checkpoint=best.ckpt"] if command == "evaluate" and not given else []


def composes(command: str, words: list[str]) -> bool:
    try:
        composed(*words, *required(command, words), config=command)
    except Exception as error:  # Hydra's own, and ConfigError
        assert (
            isinstance(error, ConfigError) or "hydra" in type(error).__module__ or "omegaconf" in type(error).__module__
        )
        return False
    return True
