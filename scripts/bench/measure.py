"""One process of the benchmark: how long it took, and how much memory it and its children held at most."""

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

__all__ = ["Failed", "Finished", "run"]

POLL_SECONDS = 0.2
PROC = Path("/proc")


class Failed(Exception):
    """A process ended with an error; the text is the last line that it wrote."""


@dataclass(frozen=True)
class Finished:
    """`seconds` of wall time; the peaks in MiB: `anonymous` leaves out mapped files, which the system can drop at will, and
    `resident` counts them (and what processes share, once each). Both are 0 where there is no /proc.
    """

    seconds: float
    anonymous: float
    resident: float
    stdout: str

    def answer(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout; raises `Failed` if there is none."""
        lines = self.stdout.strip().splitlines() or [""]
        try:
            return dict(json.loads(lines[-1]))
        except (ValueError, TypeError):
            raise Failed(f"no JSON on the last line: {lines[-1][:200]}") from None

    def costs(self) -> dict[str, float]:
        """What is kept in the results: wall_seconds, anonymous_mib, resident_mib."""
        return {"wall_seconds": round(self.seconds, 3), "anonymous_mib": round(self.anonymous, 1),
                "resident_mib": round(self.resident, 1)}  # fmt: skip


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None,
        timeout_seconds: float = 4 * 3600, may_fail: bool = False) -> Finished:  # fmt: skip
    """Run `command` with `env` on top of this environment; raises `Failed` unless it ends with 0, or `may_fail`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=cwd,
                                   env={**os.environ, **(env or {})})  # fmt: skip
        peaks = [0.0, 0.0]
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peaks, ended), daemon=True)
        watcher.start()
        try:
            code = process.wait(timeout_seconds)
            seconds = perf_counter() - began
        except subprocess.TimeoutExpired:
            raise Failed(f"still running after {timeout_seconds:.0f} s") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            ended.set()
            watcher.join()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    if code and not may_fail:
        lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
        raise Failed(lines[-1][:300] if lines else f"exit code {code}")
    return Finished(seconds, peaks[0], peaks[1], texts[0])


def _watch(pid: int, peaks: list[float], ended: threading.Event) -> None:
    while True:
        for position, value in enumerate(_held(pid)):
            peaks[position] = max(peaks[position], value)
        if ended.wait(POLL_SECONDS):
            return


def _held(pid: int) -> tuple[float, float]:
    """Anonymous and resident MiB of a process and all below it, now."""
    if not PROC.is_dir():
        return 0.0, 0.0
    facts = {int(folder.name): _facts(folder) for folder in PROC.iterdir() if folder.name.isdecimal()}
    family, grown = {pid}, True
    while grown:
        below = {child for child, values in facts.items() if values.get("PPid") in family}
        grown = not below <= family
        family |= below
    held = [facts.get(member, {}) for member in family]
    return tuple(sum(values.get(key, 0) for values in held) / 1024 for key in ("RssAnon", "VmRSS"))  # type: ignore


def _facts(folder: Path) -> dict[str, int]:
    """PPid, RssAnon and VmRSS (kB) of one process; nothing if it has ended meanwhile."""
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in lines)
    return {key: int(value.split()[0]) for key, value in pairs if key in ("PPid", "RssAnon", "VmRSS")}
