"""Names of an archive's members: safe on every system, and each there once."""

import os
import re
import unicodedata
from dataclasses import dataclass, field

from imgclf.fetch.archive_limits import RefusedError

__all__ = ["Names", "shown"]

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)


@dataclass
class Names:
    """The names seen so far; `claim` turns a safe new one into its parts and refuses every other."""

    seen: dict[str, tuple[str, bool]] = field(default_factory=dict)  # key -> (spelling, is a folder)
    current: str = ""

    def claim(self, name: str, is_folder: bool) -> tuple[str, ...]:
        """The parts of `name`; RefusedError where it is unsafe, or meets an earlier one on some file system."""
        parts = _safe_parts(name)
        if not parts and not is_folder:
            raise RefusedError("has no name")
        for depth in range(1, len(parts) + 1):
            spelling, folder = "/".join(parts[:depth]), depth < len(parts) or is_folder
            key = _key(spelling)
            if (old := self.seen.get(key)) is None:
                self.seen[key] = spelling, folder
            elif old[0] != spelling:
                raise RefusedError(f"is the same name as {shown(old[0])} where case or accents don't count")
            elif old[1] != folder:
                raise RefusedError(f"needs {shown(spelling)} to be both a file and a folder")
            elif not folder:
                raise RefusedError("stands in the archive twice")
        return parts

    def where(self) -> str:
        """The start of a message: which member is at work."""
        return f"member {shown(self.current)} " if self.current else ""


def _safe_parts(name: str) -> tuple[str, ...]:
    """The folders and the file of a member's name, the same on every system; RefusedError for any other name."""
    try:
        length_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise RefusedError("has a name that isn't UTF-8") from None
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        raise RefusedError("has a control character in its name")
    if "\\" in name:
        raise RefusedError("has a backslash in its name, which some systems take for a separator")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise RefusedError("has an absolute name")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise RefusedError("leaves the folder by '..'")
    if length_bytes > 1024 or any(len(part.encode()) > 255 for part in parts):
        raise RefusedError("has a name longer than 1024 bytes, or 255 between two slashes")
    if any(_RESERVED.fullmatch(part) or part.endswith(".") for part in parts):
        raise RefusedError("has a name that Windows reserves or changes")
    if os.name == "nt" and any(re.search(r'[<>:"|?*]| $', part) for part in parts):
        raise RefusedError("has a name that Windows can't keep")
    return parts


def _key(spelling: str) -> str:
    """Equal for names that some file system takes for one: case, Unicode form, trailing dots and spaces."""
    if spelling.isascii():
        return re.sub(r"[ .]+(?=/|$)", "", spelling.lower())
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", spelling).casefold())
    return re.sub(r"[ .]+(?=/|$)", "", folded)


def shown(name: str) -> str:
    """`name` as messages show it: quoted, and not too long."""
    return repr(name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}")  # repr: one line whatever it holds
