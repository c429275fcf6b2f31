"""The exceptions that a user can meet; anything else that escapes is a bug and keeps its traceback.

ImgclfError            shown as one line, exit code 2
├── ConfigError        a setting that can't be used
├── DataError          a folder or file of data isn't what it should be
│   └── ImageError     one image can't be read; the message names it
├── CheckpointError    a checkpoint or weights file can't be used
└── RunError           a run can't start, continue or be resumed
"""

__all__ = ["CheckpointError", "ConfigError", "DataError", "ImageError", "ImgclfError", "RunError", "one_line"]


class ImgclfError(Exception):
    """An error that the user can act upon, in one line: what came, what was expected, what to do next."""

    exit_code = 2

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


def one_line(error: object, limit: int = 300) -> str:
    """Return an error's text on one line of at most `limit` characters; the name of its type where it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
