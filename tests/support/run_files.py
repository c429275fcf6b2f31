"""The files of a finished run, as tests read and compare them."""

import csv
import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a history without its wall time, the one column that differs between equal runs."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
