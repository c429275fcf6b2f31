"""The exceptions that a user can meet; anything else that escapes is a bug and keeps its traceback.

ImgclfError            shown as one line, exit code 2
├── ConfigError        a setting that can't be used
├── DataError          a folder or file of data isn't what it should be
│   └── ImageError     one image can't be read; the message names it
├── CheckpointError    a checkpoint or weights file can't be used
└── RunError           a run can't start, continue or be resumed
    └── TrialError     a trial of a sweep failed, or was refused
"""

import errno
import importlib.util
from collections.abc import Sequence
from difflib import get_close_matches

from imgclf.names import printable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageError",
    "ImgclfError",
    "RunError",
    "TrialError",
    "disk_is_full",
    "install_hint",
    "line_of_os_error",
    "nearest",
    "not_finite",
    "one_line",
    "require_package",
    "require_value",
]

_LISTED = 12  # names that a message lists when none is near


class ImgclfError(Exception):
    """An error that the user can act upon, in one line: what came, what was expected, what to do next."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the line, whatever the names in it hold."""
        return printable(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(ImgclfError):
    """A setting that can't be used."""


class DataError(ImgclfError):
    """A folder or file of data isn't what it should be."""


class ImageError(DataError):
    """An image can't be read; the message begins with its name."""


class CheckpointError(ImgclfError):
    """A checkpoint or weights file can't be used."""


class RunError(ImgclfError):
    """A run can't start, continue or be resumed."""


class TrialError(RunError):
    """A trial of a sweep failed, or was refused; its line was printed when that happened."""


def nearest(name: str, names: Sequence[str]) -> str:
    """Return the end of a message about an unknown `name`: the one that was meant, else the names that there are."""
    if near := get_close_matches(name, names, 1) or get_close_matches(name.lower(), names, 1):
        return f"did you mean {near[0]}?"
    listed = ", ".join(names[:_LISTED])
    return f"expected one of {listed}{f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''}"


def install_hint(extra: str) -> str:
    """Return how to install one of imgclf's extras."""
    return f'install it with `pip install -e ".[{extra}]"` in the checkout of imgclf'


def require_package(package: str, extra: str, setting: str) -> None:
    """Raise `ConfigError` if `package` isn't installed, which `setting` needs and the `extra` of imgclf brings."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name, such as the files of a tracker, is no package
        raise ConfigError(f"{setting}: the package {package} isn't installed; {install_hint(extra)}")


def require_value(name: str, value: object) -> None:
    """Raise `ConfigError` for an empty text as the value of `name`: `resume=$RUN` must not begin a new run if RUN is unset."""
    if isinstance(value, str) and not value.strip():
        raise ConfigError(f"{name}: the value is empty; give one, or leave it out (is a variable of the shell unset?)")


def disk_is_full(error: OSError) -> bool:
    """Return whether an error means that the disk, a quota or the largest size of a file was reached."""
    return error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def line_of_os_error(error: OSError) -> str:
    """Return the line that a command prints for an error of the operating system: the file, what is wrong, what to do."""
    line = f"{error.filename or 'the operating system'}: {error.strerror or error}"
    return f"{line}; free some space, and run the command again" if disk_is_full(error) else line


def not_finite(name: str, others: int = 0) -> str:
    """Return the message about an image for which the network's outputs are NaN or infinite, and so are those for `others`."""
    more = f" and {others:,} others" if others else ""
    return (
        f"{name}: the network's outputs aren't finite for this image{more}; use another checkpoint, or train with a lower "
        "learning rate"
    )


def one_line(error: object, limit: int = 300) -> str:
    """Return an error's text on one line of at most `limit` characters; the name of its type where it has no text.

    The text may come from a server: what a terminal would obey is escaped.
    """
    return printable(" ".join(str(error).split()))[:limit] or type(error).__name__
