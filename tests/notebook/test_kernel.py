"""A real kernel: what a notebook shows of a run, and what its stop button does. Needs ipykernel and nbclient."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.fabricate import TINY

nbformat = pytest.importorskip("nbformat", reason="needs the extra `dev`")
nbclient = pytest.importorskip("nbclient", reason="needs the extra `dev`")
pytest.importorskip("ipykernel", reason="needs the extra `dev`")

# The last line of each cell is what it shows.
CELLS = """
import imgclf
from imgclf.training.classifier import ImageClassifier
words = {words}
run = imgclf.train(*words, "trainer.max_epochs=25", "callbacks=none", "hydra.run.dir=run", "report=true", data_dir={data!r})
#%%
run
#%%
run.report
#%%
import matplotlib.pyplot
run.plot_curves()
#%%
run.top_losses(2)
#%%
run.data.show_classes(2)
#%%
imgclf.train("dataset=crds")
#%%
import os, signal
step = ImageClassifier.training_step
def stop(self, *args):
    os.kill(os.getpid(), signal.SIGINT)  # what the stop button sends
    return step(self, *args)
ImageClassifier.training_step = stop
imgclf.train(*words, "hydra.run.dir=stopped", data_dir={data!r})
#%%
ImageClassifier.training_step = step
imgclf.train("trainer.max_epochs=1", resume="stopped").history[0]["epoch"]
"""


@pytest.fixture(scope="module")
def cells(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells after their execution, with their outputs."""
    folder = tmp_path_factory.mktemp("kernel")
    text = CELLS.format(words=tuple(TINY), data=str(colours))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(part.strip()) for part in text.split("#%%")])
    options = {"timeout": 300, "allow_errors": True, "resources": {"metadata": {"path": str(folder)}}}
    nbclient.NotebookClient(notebook, **options).execute()
    return notebook.cells


def shown(cell: Any) -> dict[str, Any]:
    """Return what the last line of a cell showed, by media type."""
    (output,) = [output for output in cell.outputs if output.output_type == "execute_result"]
    return output.data


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_training_shows_one_table_and_few_lines(cells: list[Any]) -> None:
    tables = [output.data for output in cells[0].outputs if output.output_type == "display_data"]
    assert len(tables) == 1, "the table and its bars are one output"
    epochs = re.findall(r"<tr><td[^>]*>(\d+)</td>", tables[0]["text/html"])
    assert epochs == [str(epoch) for epoch in range(6, 26)] and "the last 20 of 25" in tables[0]["text/html"]
    assert "<progress" not in tables[0]["text/html"], "the bar is gone in the end"
    assert len(tables[0]["text/plain"].splitlines()) == 21, "the names of the columns, and 20 epochs"
    text = printed(cells[0])
    assert len(text.splitlines()) < 30, text
    assert max(map(len, text.splitlines())) <= 300 and "\x1b" not in text and "\r" not in text
    assert not any(word in text for word in ("Warning", "IProgress", "Tip", "epoch  25"))


def test_run_and_figures_show_once(cells: list[Any]) -> None:
    assert shown(cells[1])["text/plain"].startswith("Run in ")
    for cell in cells[3:6]:
        assert "image/png" in shown(cell) and len(cell.outputs) == 1


def test_report_shows_as_a_page_in_a_frame(cells: list[Any]) -> None:
    page = shown(cells[2])["text/html"]
    assert page.startswith("<iframe srcdoc=") and "&lt;!DOCTYPE html&gt;" in page


def test_mistake_shows_as_one_line(cells: list[Any]) -> None:
    (error,) = cells[6].outputs
    assert error.traceback == ["ConfigError: dataset=crds: no such choice; did you mean cards?"]


def test_stop_button_ends_the_run_and_not_the_kernel(cells: list[Any]) -> None:
    error = cells[7].outputs[-1]
    assert error.ename == "KeyboardInterrupt" and error.evalue.startswith("interrupted by SIGINT; ")
    assert shown(cells[8])["text/plain"] == "1", "the stopped run was saved and continues"
