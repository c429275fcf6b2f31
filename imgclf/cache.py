"""`imgclf cache`: list or clear cached images and features."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from imgclf.console import CommandParser, print_message, print_text, run_command
from imgclf.errors import ConfigError
from imgclf.files import cache_folder
from imgclf.files.row_store import list_stores

__all__ = ["main"]

EPILOG = """
examples:
  imgclf cache
  imgclf cache clear
  imgclf cache clear pixels/cards-0123456789abcdef
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """List or clear the cache; returns 1 if something could not be cleared, 2 for an unknown name."""
    parser = CommandParser(
        prog="imgclf cache",
        description="List or clear the cached images and features that runs share.\nDownloaded data sets stay.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries to list or clear, as listed (default: all)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _list_or_clear(options.action, options.names))


def _list_or_clear(action: str, names: Sequence[str]) -> int:
    root = cache_folder()
    stores = {f"{store[0].parent.name}/{store[0].name}": store for store in list_stores(root)}
    if unknown := [name for name in names if name not in stores]:
        raise ConfigError(f"{root} holds no {unknown[0]}; `imgclf cache` lists its entries")
    chosen = {name: stores[name] for name in names or stores}
    if action == "clear":
        cleared = [_clear(name, folder, size) for name, (folder, _, size) in chosen.items()]
        return 0 if all(cleared) else 1
    for name, (_, metadata, size) in chosen.items():
        print_text(f"{size / 1e6:>9,.1f} MB  {name}")
        print_text(f"{'':>14}{metadata.get('images', '?')}, from {metadata.get('root', '?')}")
    total = sum(size for _, _, size in chosen.values())
    print_text(f"{total / 1e6:>9,.1f} MB  in {root}")
    return 0


def _clear(name: str, folder: Path, size: int) -> bool:
    """Delete a store unless a run is adding to it; on POSIX a run that is reading it keeps its rows."""
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            shutil.rmtree(folder)
    except Timeout:
        print_message(f"{name} is in use by a run; try again after it has ended")
        return False
    except OSError as error:
        print_message(f"{name} cannot be cleared ({error.strerror}); delete {folder} by hand")
        return False
    print_text(f"cleared {name}, {size / 1e6:,.1f} MB")
    return True


if __name__ == "__main__":
    sys.exit(main())
