"""The table of a notebook's cell, and its progress bar."""

import re

import pytest

from imgclf import jupyter
from imgclf.console import progress_bar
from imgclf.jupyter import LiveTable


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook would show, one text per update."""
    texts: list[str] = []
    monkeypatch.setattr(jupyter, "_SECONDS", 0)
    monkeypatch.setattr(LiveTable, "show", lambda table: texts.append(table._html()))
    monkeypatch.setattr("imgclf.console.in_notebook", lambda: True)
    return texts


def test_bar_shows_below_the_open_table_and_goes_with_it(shown: list[str]) -> None:
    table = LiveTable(["epoch", "loss"])
    table.open()
    with progress_bar("epoch 1 of 3, batch", 1200) as advance:
        advance(1000)
        advance(200)
    table.rows = [["1", "<0.5>"]]
    table.close()
    assert "<progress" not in shown[0] and '<progress value="1000" max="1200"' in shown[1]
    assert shown[2].startswith("<table>") and shown[2].endswith("epoch 1 of 3, batch: 1,200 of 1,200</div>")
    assert re.search(r"<td[^>]*>1</td><td[^>]*>&lt;0\.5&gt;</td>", shown[-1]) and "<progress" not in shown[-1]
    assert len(shown) == 4 and LiveTable.current is None


def test_bar_without_a_table_stays_when_it_is_full(shown: list[str]) -> None:
    with progress_bar("checking", 2) as advance:
        advance(2)
    assert shown[-1].count("<progress") == 1 and "checking: 2 of 2" in shown[-1] and "<table>" not in shown[-1]


def test_updates_are_a_fifth_of_a_second_apart(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jupyter, "_SECONDS", 0.2)
    now = [100.0]
    monkeypatch.setattr(jupyter.time, "monotonic", lambda: now[0])
    table = LiveTable()
    table.show = lambda: (shown.append("x"), setattr(table, "_shown_at", now[0]))  # type: ignore[method-assign]
    for step in range(100):
        now[0] += 0.01
        table.bar("batch", step, 100)
    assert 5 <= len(shown) <= 6, "1 second has at most 5 updates, and the first"
