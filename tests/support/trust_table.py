"""pytest plugin that writes what the tests marked `trust` tried, and how often it failed, into a page.

    pytest tests -m trust --trust-table docs/trust.md

`@pytest.mark.trust(what was tried, what must not happen)` marks a test; each of its cases counts once, or `n` times after
`record_property("tried", n)`. A failed test counts as failed with everything that it tried.
"""

import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"
Row = tuple[str, str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trust-table", metavar="PAGE", help="write the table of faults tried and failures into PAGE")


@pytest.fixture(autouse=True)
def _marked(request: pytest.FixtureRequest, record_property: Any) -> Iterator[None]:
    if mark := request.node.get_closest_marker("trust"):
        record_property("trust", list(mark.args))
    yield


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Collector(config), "trust-collector")


class _Collector:
    """Collects the reports of tests, those of other processes too."""

    def __init__(self, config: pytest.Config) -> None:
        self.page: str | None = config.getoption("--trust-table")
        self.rows: dict[Row, list[int]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        finished = report.when == "call" or (report.when == "setup" and report.failed)
        if "trust" not in properties or report.skipped or not finished:
            return
        what, bad = properties["trust"]
        row = self.rows.setdefault((str(what), str(bad)), [0, 0])
        tried = int(str(properties.get("tried", 1)))
        row[0] += tried
        row[1] += tried if report.failed else 0

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.page or hasattr(session.config, "workerinput") or not self.rows:
            return
        page = Path(self.page)
        head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        page.write_text(f"{head}{BEGIN}\n{self.table()}{END}{rest.partition(END)[2]}", encoding="utf-8")

    def table(self) -> str:
        """Return the table in Markdown, with the date and the versions below it."""
        lines = ["| what was tried | times | what must not happen | happened |", "|---|--:|---|--:|"]
        lines += [f"| {what} | {row[0]:,} | {bad} | {row[1]:,} |" for (what, bad), row in sorted(self.rows.items())]
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        machine = f"{platform.system()}, {platform.machine()}"
        lines += ["", f"Measured by the tests on {date.today().isoformat()}: {machine}, {versions}."]
        return "\n".join(lines) + "\n"
