"""Peak memory of decoding image files, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import imgclf

MEASURE = """
import os, sys
from pathlib import Path
from imgclf.images import decode
from imgclf.errors import ImageError

def peak():  # not getrusage: its maximum survives exec, so it would be this test process's own
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

for path in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    data = Path(path).read_bytes()  # in a process of its own, where no file before has left memory behind
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = peak()
    try:
        outcome = decode(data, "bomb").shape
    except ImageError as error:
        outcome = error
    print((peak() - before) / 1024, outcome, flush=True)
    os._exit(0)
"""


def measured(paths: list[Path]) -> dict[str, tuple[float, str]]:
    """{file name: (megabytes at the peak of decoding it, shape or error)}."""
    command = [sys.executable, "-W", "error", "-c", MEASURE, *map(str, paths)]
    root = Path(imgclf.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0 and not done.stderr, (done.stdout, done.stderr)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return {path.name: (float(line[0]), line[2]) for path, line in zip(paths, lines, strict=True)}
