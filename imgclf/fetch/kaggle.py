"""Downloads: a file or a data set is whole under its final name, or not there; what has come is kept for resuming.

A Kaggle data set comes as one archive from the address that Kaggle's own "Download with cURL" button shows,
`/api/v1/datasets/download/<owner>/<name>`, and is unpacked by `archive.extract`; kagglehub would unpack it by rules
that aren't ours (no limit on bytes or members). kagglehub, an extra, is the second way: it is asked where that address
fails, for instance because Kaggle changed it, and its folder is copied under the same rules. Both ways were tried on
servers of the tests only, never on kaggle.com itself.
"""

import base64
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from imgclf.errors import DataError
from imgclf.fetch.archive import ArchiveError, adopt, extract
from imgclf.fetch.http import download_url
from imgclf.fetch.http_client import FetchError
from imgclf.fetch.http_part import Progress
from imgclf.files.atomic import cache_folder

__all__ = ["destination", "download_dataset", "download_url"]

_KAGGLE = "https://www.kaggle.com"


def destination(name: str) -> Path:
    """The folder of the data set `name` in the cache folder; it exists only when the data set is whole."""
    return cache_folder() / "data" / name


def download_dataset(name: str, handle: str, *, base_url: str | None = None) -> Path:
    """Download the Kaggle data set `handle` ("owner/name") to `destination(name)`, unless it is there, and return that.

    `base_url` (else $IMGCLF_KAGGLE_URL, else kaggle.com) may name a mirror. What happens is told on stderr. Raises
    DataError in one line: no credentials, no such data set, a hostile archive (deleted), no room.
    """
    if not re.fullmatch(r"[\w-]+/[\w-]+", handle, re.ASCII) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise DataError(f"{name!r}, {handle!r}: expected a plain name and a Kaggle handle like 'owner/data-set'")
    folder = destination(name)
    if folder.is_dir() and any(folder.iterdir()):
        print(f"{folder}: already downloaded", file=sys.stderr)
        return folder
    base_url = (base_url or os.environ.get("IMGCLF_KAGGLE_URL") or _KAGGLE).rstrip("/")
    archive = folder.with_name(f"{name}.archive")
    try:
        with _bar(f"downloading {name}") as progress:
            url = f"{base_url}/api/v1/datasets/download/{handle}"
            download_url(url, archive, headers=_credentials(), progress=progress)
    except FetchError as error:
        return _through_kagglehub(handle, folder, error)
    try:
        with _bar(f"unpacking {name}") as progress:
            extract(archive, folder, progress=progress)
    except ArchiveError:
        archive.unlink(missing_ok=True)  # the next call must not meet it again
        raise
    archive.unlink(missing_ok=True)
    return folder


def _through_kagglehub(handle: str, folder: Path, cause: FetchError) -> Path:
    """The second way, where kagglehub is installed and `cause` closed the first; else `cause`, told usefully."""
    try:
        import kagglehub
    except ImportError:
        raise _told(handle, cause.status, str(cause)) from cause
    print(f"{cause}; asking kagglehub", file=sys.stderr)
    try:
        tree = Path(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub's exceptions share no base, and moved between its versions
        status = getattr(getattr(error, "response", None), "status_code", 0) or cause.status
        unknown = "Credential" in type(error).__name__ or "Unauthenticated" in type(error).__name__
        line = " ".join(str(error).split()) or type(error).__name__
        raise _told(handle, 401 if unknown else status, f"kagglehub: {line}") from error
    return adopt(tree.resolve(), folder)  # copied: kagglehub's cache stays kagglehub's


def _told(handle: str, status: int, line: str) -> DataError:
    by_hand = f"download it by hand from {_KAGGLE}/datasets/{handle} and pass data_dir="
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return DataError(
            f"Kaggle wants to know who downloads {handle} ({status}): create an API token at {_KAGGLE}/settings, put "
            "it to ~/.kaggle/kaggle.json or set KAGGLE_USERNAME and KAGGLE_KEY (or KAGGLE_API_TOKEN), and accept the "
            f"data set's terms on its page; or {by_hand}"
        )
    return DataError(f"{line}; or {by_hand}")


def _credentials() -> dict[str, str]:
    """The Authorization header from where Kaggle's own tools look, in their order; {} if there are none."""
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    token = os.environ.get("KAGGLE_API_TOKEN", "")
    user, key = os.environ.get("KAGGLE_USERNAME", ""), os.environ.get("KAGGLE_KEY", "")
    file = folder / "access_token"
    try:
        if token and os.path.isfile(token):  # noqa: PTH113 (it may name a file; Path raises for a long token)
            token = Path(token).read_text().strip()
        elif not token and file.is_file():
            token = file.read_text().strip()
        file = folder / "kaggle.json"
        if not token and not (user and key) and file.is_file():
            saved = json.loads(file.read_text())
            user, key = saved["username"], saved["key"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        what = type(error).__name__  # never the text: it may hold the key
        raise DataError(
            f"{file}: not a readable Kaggle token ({what}); create a new one at {_KAGGLE}/settings"
        ) from None
    if token:
        return {"Authorization": f"Bearer {token}"}
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{key}'.encode()).decode()}"} if user and key else {}


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """A progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
