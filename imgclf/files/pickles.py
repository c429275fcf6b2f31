"""What a pickle would call, told from its instructions without following any of them."""

import pickletools
import re
from collections import deque
from typing import IO

from imgclf.errors import CheckpointError

__all__ = ["check_instructions"]

# What torch writes for tensors and plain data. `weights_only=True` follows more, some of which takes whatever memory it is
# told to (`bytearray(10**12)`; a tensor of stride 0 brought to another dtype), and any library may add to its list.
_ALLOWED = re.compile(
    r"collections OrderedDict|(__builtin__|builtins) set|torch (Size|device|bool|b?float\w+|u?int\d+|complex\d+)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)|torch(\.cuda)? [A-Z][A-Za-z0-9]*Storage"
    r"|torch\.storage UntypedStorage"
)


def check_instructions(stream: IO[bytes], pickles: int = 1) -> None:
    """Look through as many `pickles` as stand one behind the other in `stream`.

    Raises `CheckpointError` for one that asks for more than tensors and plain data need, `ValueError` for a damaged one.
    """
    for _ in range(pickles):
        texts: deque[str] = deque(maxlen=2)
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                asked = " ".join(texts) if opcode.name == "STACK_GLOBAL" else str(argument)
                if not _ALLOWED.fullmatch(asked):
                    raise CheckpointError(f"asks for {ascii(asked.replace(' ', '.'))[1:-1][:80]}, which is more than tensors "
                                          "and plain data; it was not loaded")  # fmt: skip
            elif isinstance(argument, str):
                texts.append(argument)
