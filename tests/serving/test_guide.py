"""The guide's examples run as printed, its tables name every option and status, and the container's files fit the command."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.fabricate import ROOT
from support.service import Asked

from imgclf import serve
from imgclf.serving.document import openapi
from imgclf.serving.settings import ServeSettings

GUIDE = (ROOT / "docs" / "guide" / "serve.md").read_text()
EXAMPLES = [line for line in GUIDE.splitlines() if line.startswith("curl ")]
DOCKER = (ROOT / "docker" / "Dockerfile").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs_as_printed(asked: Asked, tmp_path: Path, example: str) -> None:
    Image.new("RGB", (40, 30), (200, 40, 40)).save(tmp_path / "photo.jpg")
    Image.new("RGB", (40, 30), (40, 60, 200)).save(tmp_path / "card.png")
    here = f"http://127.0.0.1:{asked.port}"
    command = example.replace("http://127.0.0.1:8000", here)
    command = command.replace("https://example.org/photo.jpg", f"{here}/samples/0/2")
    run = subprocess.run([*shlex.split(command), "-sS", "--fail"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    if "/predict" in command:
        assert answer["predictions"][0]["top"][0]["class"] == "red"
    else:
        assert len(answer["models"]) == 2


def test_guide_has_four_examples() -> None:
    assert len(EXAMPLES) == 4


def test_tables_have_every_option_status_and_parameter() -> None:
    words = [sys.executable, "-m", "imgclf.serve", "--help"]
    known = set(re.findall(r"--[a-z-]+", subprocess.run(words, capture_output=True, text=True).stdout)) - {"--help"}
    spans = " ".join(re.findall(r"^\| `.*", GUIDE, re.MULTILINE))
    assert set(re.findall(r"--[a-z-]+", spans)) == known
    operation = openapi(ServeSettings())["paths"]["/predict"]["post"]
    rows = set(re.findall(r"\d{3}", " ".join(re.findall(r"^\| (\d[\d, ]+) \|", GUIDE, re.MULTILINE))))
    assert rows == set(operation["responses"]) - {"200"}
    assert [p["name"] for p in operation["parameters"]] == re.findall(r"^\| `([a-z]+)` \|", GUIDE, re.MULTILINE)


def test_defaults_of_the_command_are_those_of_the_settings() -> None:
    options = serve._parser().parse_args(["model"])
    assert serve._settings(options, True) == ServeSettings()


def test_container_runs_without_root_and_with_options_that_exist() -> None:
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKER, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split()), source
    (user,) = re.findall(r"^USER (\S+)$", DOCKER, re.MULTILINE)
    assert int(user) > 0 and "HEALTHCHECK" in DOCKER
    words = [json.loads(text) for text in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", DOCKER, re.MULTILINE)]
    assert [words[0][:2], len(words)] == [["imgclf", "serve"], 2]
    deployment, _ = yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = serve._parser().parse_args([*words[0][2:], *container["args"]])
    assert (options.host, options.port, options.models) == ("0.0.0.0", 8000, ["/models/best.ckpt"])
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 2 * options.timeout
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": options.port}
