"""The one word of a command line that is a model, and not `key=value`."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from imgclf.cli.hydra_app import _with_key
from imgclf.errors import ConfigError


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
