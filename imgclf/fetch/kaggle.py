"""Data sets from Kaggle: downloaded, unpacked and whole under the cache folder, or absent.

A data set comes as one archive from the address of Kaggle's own "Download with cURL" button,
`/api/v1/datasets/download/<owner>/<name>`, and is unpacked by `archive.extract`; kagglehub would unpack it without
limits on bytes or members. kagglehub, an extra, is the second way: it is tried if that address fails, for instance
because Kaggle changed it, and its folder is copied under the same rules. Both ways were tested against local servers
only, never against kaggle.com itself.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from imgclf.console import print_line
from imgclf.errors import DataError, one_line
from imgclf.fetch.archive import ArchiveError, Progress, copy_tree, extract
from imgclf.fetch.http import FetchError
from imgclf.fetch.resumable import download_url
from imgclf.files.atomic import cache_folder

__all__ = ["destination", "download_dataset"]

_KAGGLE = "https://www.kaggle.com"


def destination(name: str) -> Path:
    """Return the folder of the data set `name` in the cache folder; it exists only once the data set is whole."""
    return cache_folder() / "data" / name


def download_dataset(name: str, handle: str, *, base_url: str | None = None) -> Path:
    """Download the Kaggle data set `handle` ("owner/name") to `destination(name)`, unless it exists; return that folder.

    `base_url` (else $IMGCLF_KAGGLE_URL, else kaggle.com) may name a mirror. Progress goes to stderr. Raises DataError in
    one line: no credentials, no such data set, a hostile archive (deleted), a full disk.
    """
    if not re.fullmatch(r"[\w-]+/[\w-]+", handle, re.ASCII) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise DataError(f"{name!r}, {handle!r}: expected a plain name and a Kaggle handle like 'owner/data-set'")
    folder = destination(name)
    if folder.is_dir() and any(folder.iterdir()):
        print_line(f"{folder}: already downloaded", error=True)
        return folder
    base_url = (base_url or os.environ.get("IMGCLF_KAGGLE_URL") or _KAGGLE).rstrip("/")
    archive = folder.with_name(f"{name}.archive")
    try:
        with _progress_bar(f"downloading {name}") as progress:
            url = f"{base_url}/api/v1/datasets/download/{handle}"
            download_url(url, archive, headers=_credentials(), progress=progress)
    except FetchError as error:
        return _download_by_kagglehub(handle, folder, error)
    try:
        with _progress_bar(f"unpacking {name}") as progress:
            extract(archive, folder, progress=progress)
    except ArchiveError:
        archive.unlink(missing_ok=True)  # a second attempt must download it again
        raise
    archive.unlink(missing_ok=True)
    return folder


def _download_by_kagglehub(handle: str, folder: Path, cause: FetchError) -> Path:
    """Download with kagglehub if it is installed; otherwise raise `cause` with the next steps."""
    try:
        import kagglehub
    except ImportError:
        raise _error_for(handle, cause.status, str(cause)) from cause
    print_line(f"{cause}; trying kagglehub", error=True)
    try:
        tree = Path(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub's exceptions share no base class, and move between its versions
        status = getattr(getattr(error, "response", None), "status_code", 0) or cause.status
        unknown = "Credential" in type(error).__name__ or "Unauthenticated" in type(error).__name__
        raise _error_for(handle, 401 if unknown else status, f"kagglehub: {one_line(error)}") from error
    return copy_tree(tree.resolve(), folder)  # a copy: the cache of kagglehub stays as it is


def _error_for(handle: str, status: int, line: str) -> DataError:
    by_hand = f"download it by hand from {_KAGGLE}/datasets/{handle} and pass data_dir=<its folder>"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return DataError(
            f"Kaggle requires credentials for {handle} ({status}): create an API token at {_KAGGLE}/settings, save it as "
            "~/.kaggle/kaggle.json or set KAGGLE_USERNAME and KAGGLE_KEY (or KAGGLE_API_TOKEN), and accept the data "
            f"set's terms on its page; or {by_hand}"
        )
    return DataError(f"{line}; or {by_hand}")


def _credentials() -> dict[str, str]:
    """Return the Authorization header from the places that Kaggle's own tools read, in their order; {} without any."""
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    token = os.environ.get("KAGGLE_API_TOKEN", "")
    user, key = os.environ.get("KAGGLE_USERNAME", ""), os.environ.get("KAGGLE_KEY", "")
    file = folder / "access_token"
    try:
        if token and os.path.isfile(token):  # noqa: PTH113 (it may name a file; Path raises for a long token)
            token = Path(token).read_text()
        elif not token and file.is_file():
            token = file.read_text()
        file = folder / "kaggle.json"
        if not token and not (user and key) and file.is_file():
            saved = json.loads(file.read_text())
            user, key = saved["username"], saved["key"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = type(error).__name__  # never its text, which may hold the key
        advice = f"create a new one at {_KAGGLE}/settings"
        raise DataError(f"{file}: not a readable Kaggle token ({reason}); {advice}") from None
    if token := "".join(token.split()):
        return {"Authorization": f"Bearer {token}"}
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{key}'.encode()).decode()}"} if user and key else {}


@contextmanager
def _progress_bar(label: str) -> Iterator[Progress]:
    """Show a progress bar of bytes on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
