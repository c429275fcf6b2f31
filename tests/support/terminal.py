"""A terminal of a given width for tests: it runs a command in a pseudo-terminal, and interprets what the command draws."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# A control sequence, a control character, or text.
_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b[=>78]|([\r\n\b])|([^\x1b\r\n\b]+)")


@dataclass
class Screen:
    """What a terminal shows: `lines` from the first on, never scrolled away, and the cursor; `wrapped` holds lines that
    were too long.
    """

    width: int
    lines: list[list[str]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    wrapped: list[str] = field(default_factory=list)

    def feed(self, text: str) -> None:
        """Draw `text`."""
        for match in _TOKEN.finditer(text):
            numbers, final, control, plain = match.groups()
            if final:
                self._command(numbers, final)
            elif control:
                self._move(control)
            elif plain:
                self._write(plain)

    def text(self) -> list[str]:
        """Return the lines as they are seen, without the empty ones at the end."""
        lines = ["".join(line).rstrip() for line in self.lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _command(self, numbers: str, final: str) -> None:
        if final == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif final == "K":
            self._line()[:] = [] if numbers == "2" else self._line()[: self.column]
        elif final == "J":
            del self.lines[self.row + 1 :]
            del self._line()[self.column :]
        elif final not in "mhl":
            raise ValueError(f"unknown control sequence {numbers}{final}")

    def _move(self, control: str) -> None:
        if control == "\n":
            self.row += 1
            self._line()
        elif control == "\b":
            self.column = max(0, self.column - 1)
        else:
            self.column = 0

    def _write(self, text: str) -> None:
        for character in text:
            if self.column == self.width:
                self.wrapped.append("".join(self._line()))
                self.row, self.column = self.row + 1, 0
            line = self._line()
            line += [" "] * (self.column - len(line))
            line[self.column : self.column + 1] = [character]
            self.column += 1

    def _line(self) -> list[str]:
        while len(self.lines) <= self.row:
            self.lines.append([])
        return self.lines[self.row]


@dataclass(frozen=True)
class Recording:
    """A command's exit code, the screen at its end, and the different screens (their lines) that it showed on the way."""

    code: int
    screen: Screen
    frames: list[list[str]]


def record(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str], width: int = 80, timeout: float = 120
) -> Recording:
    """Run `words` in a terminal of `width` columns; raises `TimeoutError` if it takes too long."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    settings = {**os.environ, **environment, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        settings.pop(name, None)
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=settings)
    os.close(theirs)
    screen, frames, ends = Screen(width), list[list[str]](), time.monotonic() + timeout
    pending = b""
    try:
        while True:
            if not select.select([ours], [], [], max(0, ends - time.monotonic()))[0]:
                raise TimeoutError(f"{words}: still running after {timeout} s; it showed {screen.text()}")
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux: the other side is closed
                data = b""
            if not data:
                break
            pending += data
            text, pending = _split(pending)
            for part in re.split(r"(?=\r|\x1b\[1A)", text):  # each redrawing of a bar is a frame of its own
                screen.feed(part)
                if not frames or frames[-1] != screen.text():
                    frames.append(screen.text())
    finally:
        if process.poll() is None:
            process.wait(10)
        os.close(ours)
    return Recording(process.wait(), screen, [*frames, screen.text()])


def _split(data: bytes) -> tuple[str, bytes]:
    """Return the text of `data` up to where a control sequence or a character is cut off, and the rest."""
    if unfinished := re.search(rb"\x1b(\[[?\d;]*)?$", data):
        return data[: unfinished.start()].decode(), data[unfinished.start() :]
    for end in range(len(data), max(-1, len(data) - 4), -1):
        with suppress(UnicodeDecodeError):
            return data[:end].decode(), data[end:]
    return data.decode(errors="replace"), b""
