"""Reports: results as CSV, PNG and HTML. Names resolve lazily: a plot loads matplotlib, a report torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf.report.page import data_uri
    from imgclf.report.run_report import ReportInputs, write_report
    from imgclf.report.tables import write_csv, write_evaluation

__all__ = ["ReportInputs", "data_uri", "write_csv", "write_evaluation", "write_report"]

_HOMES = {"data_uri": "page", "write_csv": "tables", "write_evaluation": "tables"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'run_report')}"), name)
