r"""Names of files and classes as text: one rule for all that is printed, written, or made into a file name.

A file system takes names that are no text: bytes that aren't UTF-8 (Python holds the byte E9 as the lone surrogate U+DCE9),
line ends, and codes that a terminal obeys. In Python such a name stays as it is; outside it is written with escapes:

printed, HTML      `printable`: `\xe9` is a byte of the name, `\u202e` a character of it
CSV                `escaped`, and `unescaped` gives the name back: the same escapes, and `\\` for a backslash where it is
                   needed to tell `\xe9`, the four characters, from the byte
JSON, YAML         the format's own escapes: its readers give the name back, with the lone surrogate
checkpoints        as in Python
part of a path     `file_name`: what some file system refuses becomes `_`, and the name is cut to fit
a shell's command  `imgclf.console.shell_quoted`: `$'caf\xe9'`
"""

import codecs
import hashlib
import json
import re
from typing import Any

__all__ = ["ERRORS", "as_json", "escaped", "file_name", "printable", "unescaped"]

# Control characters, line ends of Unicode, characters that turn the direction of text, and lone surrogates.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace(r"\x00-\x1f", r"\x00-\x09\x0b-\x1f"))
_ESCAPE = re.compile(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}")
_ESCAPE_OR_BACKSLASH = re.compile(rf"\\\\|{_ESCAPE.pattern}")
_NO_FILE_NAME = re.compile(rf'(?:[/\\<>:"|?*]|{_UNSAFE.pattern})+')
_MOST_BYTES = 200  # of a file's name: file systems take 255, and a temporary file's name is longer
ERRORS = "imgclf_names"  # name of the error handler by which a stream escapes what its encoding lacks


def printable(text: str, lines: bool = False) -> str:
    """Return `text` with escapes for what a terminal would obey or a stream can't encode; line ends stay if it has `lines`."""
    return (_UNSAFE_IN_LINES if lines else _UNSAFE).sub(lambda match: _escape(match[0]), text)


def escaped(name: str, encoding: str = "utf-8") -> str:
    """Return `name` with escapes also for what `encoding` lacks, so that `unescaped` gives exactly `name` back."""
    unsafe = _UNSAFE.search(name) is not None
    if not unsafe and _ESCAPE.search(name) is None and _has(encoding, name):
        return name
    parts = (char if char != "\\" else r"\\" for char in name)
    return "".join(_escape(char) if _UNSAFE.match(char) or not _has(encoding, char) else char for char in parts)


def unescaped(text: str) -> str:
    """Return the name that `escaped` wrote as `text`."""
    if _ESCAPE.search(text) is None:
        return text

    def character(match: re.Match[str]) -> str:
        if match[0] == r"\\":
            return "\\"
        number = int(match[0][2:], 16)
        return chr(0xDC00 + number if match[0][1] == "x" and number >= 0x80 else number)

    return _ESCAPE_OR_BACKSLASH.sub(character, text)


def as_json(value: object, ascii_only: bool = False, **options: Any) -> str:
    r"""Return `value` as JSON in which a name is written with the escapes of JSON, `\udce9`; `options`: of `json.dumps`."""
    text = json.dumps(value, ensure_ascii=ascii_only, **options)
    # Outside of its strings JSON has no such character but line ends and spaces; inside, those are escaped already.
    return _UNSAFE_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def file_name(name: str, most: int = _MOST_BYTES, keep: str = "end", distinct: bool = False) -> str:
    """Return `name` as the name of a file or folder, in at most `most` bytes; of a longer one its `keep`, start or end, stays.

    With `distinct`, one that had to be changed ends in digits that tell it from others.
    """
    safe = _NO_FILE_NAME.sub("_", name)
    safe = "_" if safe in ("", ".", "..") else safe
    suffix = f"-{hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=4).hexdigest()}" if distinct else ""
    if safe == name and len(safe.encode()) <= most:
        return name
    room = most - len(suffix)
    part = safe.encode()[:room] if keep == "start" else safe.encode()[-room:]
    return part.decode(errors="ignore") + suffix


def _escape(char: str) -> str:
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that isn't UTF-8, as `os.fsdecode` gives it
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _has(encoding: str, text: str) -> bool:
    """Return whether `encoding` has all characters of the text."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_escape, error.object[error.start : error.end])), error.end


codecs.register_error(ERRORS, _escape_unencodable)
