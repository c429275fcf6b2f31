"""What a call does in a child process: its result or error in one line, and the memory and time that it takes."""

import os
import pickle
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from imgclf.errors import ImgclfError

LIMIT_BYTES = 8 << 30  # of address space, beyond which the child gets a MemoryError


class Outcome(NamedTuple):
    """`text`: "accepted", an `ImgclfError`'s text, or "Type: text" of any other exception."""

    text: str
    megabytes: float
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether one line came, and less than 300 MB were taken."""
        known = self.text != "accepted" and not self.text.startswith("BUG ")
        return known and "\n" not in self.text and len(self.text) < 600 and self.megabytes < 300


def in_child(call: Callable[[], object]) -> Outcome:
    """Run `call` in a forked child with limited memory, and return what came of it; `died` is the text where it was killed."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, resource.RLIM_INFINITY))
        began, before = time.monotonic(), _peak(begins=True)
        try:
            call()
            text = "accepted"
        except ImgclfError as error:
            text = str(error)
        except BaseException as error:
            text = f"BUG {type(error).__name__}: {error}"
        taken = (_peak() - before) / 1024
        with os.fdopen(write, "wb") as pipe:
            pickle.dump((text, taken, time.monotonic() - began), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return Outcome(*pickle.loads(data)) if data else Outcome("BUG died", 0, 0)


def _peak(begins: bool = False) -> int:
    """Return the largest memory of this process in kB; where it `begins`, from what is held now: a fork inherits the maximum."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if begins:
        clear.write_text("5")
    return int(status.read_text().split("VmHWM:")[1].split()[0])
