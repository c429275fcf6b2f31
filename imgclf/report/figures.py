"""What all of a report's pictures share: colours, fonts, and the one way that a figure becomes a PNG.

matplotlib's object-oriented interface only: no pyplot, no backend, no global state, so that a notebook or a GUI that
imports this keeps its own. Colours are safe for colour-blind readers.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from imgclf.files.atomic import write_atomically

__all__ = ["BLUE", "DPI", "ORANGE", "families", "new_figure", "shown_name", "style_of", "write_figure"]

DPI = 120
BLUE, ORANGE = "#0072B2", "#D55E00"  # of the Okabe-Ito palette, https://jfly.uni-koeln.de/color/
_SEVEN = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of the same
_DASHES = ("-", "--", ":", "-.")
_LONGEST_NAME = 40  # characters of a class name that are shown


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, whose parts make room for each other."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_of(number: int) -> tuple[str, str]:
    """(colour, dashes) of the line `number`: 28 can be told apart."""
    return _SEVEN[number % len(_SEVEN)], _DASHES[number // len(_SEVEN) % len(_DASHES)]


def shown_name(name: str) -> str:
    """Give a class name in one line of bounded length; its middle goes, for beginnings and ends tell names apart."""
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(name.split()))
    half = _LONGEST_NAME // 2
    return line if len(line) <= _LONGEST_NAME else f"{line[:half]}…{line[1 - half :]}"


def families() -> list[str]:
    """List the fonts to look for a glyph in: matplotlib's own, then the usual ones for Chinese, Japanese and Korean."""
    usual = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "WenQuanYi Micro Hei", "SimHei")
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in usual if name in installed)]


def write_figure(draw: Callable[[], Figure], path: str | os.PathLike[str]) -> None:
    """Render whole, then write: a failed drawing leaves no half a picture."""
    buffer = io.BytesIO()
    with _glyphs_may_lack():
        figure = draw()
        figure.savefig(buffer, format="png", dpi=figure.dpi)
    write_atomically(path, buffer.getvalue())


@contextmanager
def _glyphs_may_lack() -> Iterator[None]:
    """Silence the one warning no user can act on: a class name's script has no font here, and shows as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support", category=UserWarning)
        yield
