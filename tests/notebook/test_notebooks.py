"""The notebooks in docs/: short, without outputs, and each runs from its first cell to its last."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.fabricate import ROOT

from imgclf.demo import DEMO_NAMES

FOLDER = ROOT / "docs" / "notebooks"


def cells_of(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_each_reference_system_has_a_notebook() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(DEMO_NAMES)


@pytest.mark.parametrize("name", DEMO_NAMES)
def test_notebook_is_short_cleared_and_names_no_machine(name: str) -> None:
    cells = cells_of(name)
    assert 10 <= len(cells) <= 15
    for cell in cells:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    text = "".join("".join(cell["source"]) for cell in cells)
    assert not re.search(r"(?<![\w.])/(home|work|tmp|Users|root|mnt|content)\b|[A-Z]:\\", text)
    assert "pip install" in text and "Colab" in text and "demonstration" in text
    assert f"For the real ones: `imgclf download dataset={name}`, then DATA = None" in text and 'DATA = "demo"' in text
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert (FOLDER / target).exists(), target


def test_way_to_open_a_notebook_is_the_same_in_all_and_names_no_version() -> None:
    ways = {"".join(cells_of(name)[0]["source"]).partition("**Open it.**")[2] for name in DEMO_NAMES}
    (way,) = ways
    assert "`pip wheel --no-deps .`" in way and "`%pip install imgclf-*.whl`" in way
    assert not re.search(r"imgclf-\d", way)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", DEMO_NAMES)
def test_notebook_runs_from_data_to_prediction(name: str, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `dev`")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `dev`")
    pytest.importorskip("ipykernel", reason="needs the extra `dev`")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    assert sum("image/png" in data for data in shown) >= 3, "plots are inline"
    assert any("<table>" in data.get("text/html", "") for data in shown), "the epochs are a table"
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert len(printed.splitlines()) < 80 and "arning" not in printed
    assert (tmp_path / "outputs" / "latest" / "metrics.json").is_file()
