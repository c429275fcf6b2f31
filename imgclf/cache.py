"""`python -m imgclf.cache`: what decoded pictures and features are kept, how large they are, and how to be rid of them."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from imgclf.files.atomic import cache_folder
from imgclf.files.row_store import list_stores

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """List or clear the cache; returns 1 if something couldn't be cleared. Data sets and drawn demos stay."""
    parser = argparse.ArgumentParser(
        prog="imgclf.cache", description="List or clear the decoded pictures and features that runs share."
    )
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to clear, as the list calls it (default: all)")
    options = parser.parse_args(arguments)
    root = cache_folder()
    stores = {f"{path.parent.name}/{path.name}": (path, about, size) for path, about, size in list_stores(root)}
    if unknown := [name for name in options.names if name not in stores]:
        print(f"imgclf: {root} holds no {unknown[0]}; python -m imgclf.cache lists what it holds", file=sys.stderr)
        return 2
    chosen = {name: stores[name] for name in options.names or stores}
    if options.action == "clear":
        left = [name for name, (path, _, size) in chosen.items() if not _clear(name, path, size)]
        return 1 if left else 0
    for name, (_, about, size) in chosen.items():
        print(f"{size / 1e6:>9,.1f} MB  {name}\n{'':>14}{about.get('pictures', '?')}, from {about.get('root', '?')}")
    total = sum(size for _, _, size in chosen.values())
    print(f"{total / 1e6:>9,.1f} MB  in {root}")
    return 0


def _clear(name: str, path: Path, size: int) -> bool:
    """Delete a store that no run is adding to; one that is being read stays whole for its reader on POSIX."""
    try:
        with FileLock(f"{path}.lock", timeout=0):
            shutil.rmtree(path)
    except Timeout:
        print(f"imgclf: {name} is being made by a run; try again when it is done", file=sys.stderr)
        return False
    except OSError as error:
        print(f"imgclf: {name} can't be cleared ({error.strerror}); delete {path} yourself", file=sys.stderr)
        return False
    print(f"cleared {name}, {size / 1e6:,.1f} MB")
    return True


if __name__ == "__main__":
    sys.exit(main())
