"""Hostile, damaged and cut archives leave nothing; good ones are unpacked whole; leftovers of killed runs are removed."""

import io
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from imgclf.errors import DataError
from imgclf.fetch.archive import ArchiveError, Limits, copy_tree, extract

SMALL = Limits(max_bytes=4_000_000, max_members=20, max_ratio=50, ratio_from_bytes=1_000_000)
FILES = {f"train/{name}/{index}.jpg": os.urandom(3000) for name in ("cat", "dog") for index in range(4)}


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def zip_special(mode: int, name: str = "x.jpg", data: bytes = b"/etc/passwd") -> bytes:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    return zip_of(("ok.jpg", b"ok"), (info, data))


def zip_patched(data: bytes, *, central: int | None = None, local: int | None = None, form: str, value: int) -> bytes:
    """Return `data` with a field of its last central header, and of its last local header, set to `value`."""
    changed = bytearray(data)
    for magic, offset in ((b"PK\x01\x02", central), (b"PK\x03\x04", local)):
        if offset is not None:
            struct.pack_into(form, changed, data.rindex(magic) + offset, value)
    return bytes(changed)


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_special(kind: bytes, target: str = "", name: str = "x.jpg") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return tar_of(("ok.jpg", b"ok"), (info, b""))


def tar_wrong_size() -> bytes:
    """Return a tar whose header declares 512 KiB, followed by four bytes."""
    info = tarfile.TarInfo("x.jpg")
    info.size = 1 << 19
    return info.tobuf() + b"four" + bytes(508) + bytes(1024)


def tar_negative_size() -> bytes:
    """Return a tar whose first header would move its reader backwards, and lower the sum of declared sizes."""
    info = tarfile.TarInfo("x.jpg")
    info.size = -1024
    return info.tobuf(format=tarfile.GNU_FORMAT) + bytes(10240)


def encrypted_zip() -> bytes:
    return zip_patched(zip_of(("x.jpg", b"data")), central=8, local=6, form="<H", value=1)


SPECIAL = "a link, a device or another special file"
ONE = ("ok.jpg", b"ok")
ZEROS = bytes(2_000_000)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip dot-dot": (lambda: zip_of(ONE, ("../evil.jpg", b"x")), r"'\.\./evil\.jpg' leaves the folder"),
    "zip dot-dot inside": (lambda: zip_of(ONE, ("a/../../evil.jpg", b"x")), "leaves the folder"),
    "zip absolute": (lambda: zip_of(ONE, ("/tmp/evil.jpg", b"x")), "absolute"),
    "zip drive letter": (lambda: zip_of(ONE, ("C:/evil.jpg", b"x")), "absolute"),
    "zip drive-relative": (lambda: zip_of(ONE, ("c:evil.jpg", b"x")), "absolute"),
    "zip UNC": (lambda: zip_of(ONE, ("//server/share/evil.jpg", b"x")), "absolute"),
    "zip backslashes": (lambda: zip_of(ONE, ("..\\evil.jpg", b"x")), "backslash"),
    "zip symlink": (lambda: zip_special(stat.S_IFLNK), SPECIAL),
    "zip device": (lambda: zip_special(stat.S_IFCHR), SPECIAL),
    "zip FIFO": (lambda: zip_special(stat.S_IFIFO), SPECIAL),
    "zip socket": (lambda: zip_special(stat.S_IFSOCK), SPECIAL),
    "zip file, then folder": (lambda: zip_of(("a", b"1"), ("a/b.jpg", b"2")), "both a file and a folder"),
    "zip folder, then file": (lambda: zip_of(("a/b.jpg", b"2"), ("a", b"1")), "both a file and a folder"),
    "zip control character": (lambda: zip_of(ONE, ("a\nb.jpg", b"x")), r"'a\\nb\.jpg' has a control"),
    "zip NUL": (lambda: zip_of(ONE, ("evilXjpg", b"x")).replace(b"evilXjpg", b"evil\0jpg"), "control"),
    "zip long name": (lambda: zip_of(ONE, ("a" * 300, b"x")), "longer"),
    "zip deep name": (lambda: zip_of(ONE, ("a/" * 600 + "x", b"x")), "longer"),
    "zip encrypted": (encrypted_zip, "encrypted"),
    "zip bzip2": (lambda: zip_of(("x", b"data"), method=zipfile.ZIP_BZIP2), "packed by method 12"),
    "zip wrong CRC": (lambda: zip_patched(zip_of(("x", b"abc" * 99)), central=16, form="<L", value=1), "CRC"),
    "zip larger than declared": (lambda: zip_patched(zip_of(("x", ZEROS)), central=24, form="<L", value=9), "damaged"),
    "zip smaller than declared": (lambda: zip_patched(zip_of(("x", b"y")), central=24, form="<L", value=9), "has 1 by"),
    "zip ratio": (lambda: zip_of(("x.bmp", ZEROS)), "50 times"),
    "zip bytes": (lambda: zip_of(("x.bmp", os.urandom(5_000_000))), "4000000 bytes"),
    "zip members": (lambda: zip_of(*((f"{i}.jpg", b"") for i in range(21))), "more than 20 members"),
    "zip empty": (lambda: zip_of(), "no files"),
    "tar dot-dot": (lambda: tar_of(ONE, ("../evil.jpg", b"x")), "leaves the folder"),
    "tar absolute": (lambda: tar_of(ONE, ("/tmp/evil.jpg", b"x")), "absolute"),
    "tar symlink": (lambda: tar_special(tarfile.SYMTYPE, "/etc"), SPECIAL),
    "tar relative symlink": (lambda: tar_special(tarfile.SYMTYPE, "ok.jpg"), SPECIAL),
    "tar hard link": (lambda: tar_special(tarfile.LNKTYPE, "ok.jpg"), SPECIAL),
    "tar hard link outside": (lambda: tar_special(tarfile.LNKTYPE, "/etc/passwd"), SPECIAL),
    "tar character device": (lambda: tar_special(tarfile.CHRTYPE), SPECIAL),
    "tar block device": (lambda: tar_special(tarfile.BLKTYPE), SPECIAL),
    "tar FIFO": (lambda: tar_special(tarfile.FIFOTYPE), SPECIAL),
    "tar unknown kind": (lambda: tar_special(b"Q"), SPECIAL),
    "tar duplicate": (lambda: tar_of(("a.jpg", b"1"), ("a.jpg", b"2")), "twice"),
    "tar duplicate by ./": (lambda: tar_of(("a.jpg", b"1"), ("./a.jpg", b"2")), "twice"),
    "tar not UTF-8": (lambda: tar_of(ONE, ("caf\udce9.jpg", b"1")), "UTF-8"),
    "tar ratio gz": (lambda: tar_of(("x.bmp", ZEROS), mode="w:gz"), "50 times"),
    "tar ratio xz": (lambda: tar_of(("x.bmp", ZEROS), mode="w:xz"), "50 times"),
    "tar bytes": (lambda: tar_of(("x.bmp", os.urandom(5_000_000))), "4000000 bytes"),
    "tar members": (lambda: tar_of(*((f"{i}.jpg", b"") for i in range(21))), "more than 20 members"),
    "tar wrong size": (tar_wrong_size, "damaged"),
    "tar no end": (lambda: tar_of(ONE)[:1024], "ends early"),
    "tar damaged header": (lambda: tar_of(ONE, ("b.jpg", b"x")).replace(b"b.jpg", b"c.jpg"), "ends early"),
    "tar negative size": (tar_negative_size, f"{SPECIAL}|neither a zip nor a tar"),
    "tar sparse": (lambda: tar_special(tarfile.GNUTYPE_SPARSE), SPECIAL),
    "tar gz checksum": (lambda: tar_of(ONE, mode="w:gz")[:-8] + bytes(8), "damaged"),
    "empty file": (lambda: b"", "neither a zip nor a tar"),
    "web page": (lambda: b"<!doctype html>" + b"<p>Log in</p>" * 99, "neither a zip nor a tar"),
}


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refuse(archive: Path, pattern: str, limits: Limits | None = None) -> None:
    """Assert that `archive` is refused in one line that names it, and that no file around it changes."""
    before = tree(archive.parent)
    with pytest.raises(ArchiveError, match=pattern) as caught:
        extract(archive, archive.parent / "data" / "set", limits)
    message = str(caught.value)
    assert message.isprintable() and message.startswith(str(archive)) and len(message) < 400
    assert tree(archive.parent) == before


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.mark.trust("hostile archives unpacked", "a file outside, or anything left")
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_refused_and_leaves_nothing(case: str, place: Path) -> None:
    make, pattern = HOSTILE[case]
    (place / "hostile").write_bytes(make())
    refuse(place / "hostile", pattern, SMALL)
    assert not Path("/tmp/evil.jpg").exists()


def test_default_limits_refuse_a_bomb(place: Path) -> None:
    (place / "bomb.zip").write_bytes(zip_of(("x.bmp", bytes(70 << 20))))  # deflate: 1,030 to 1
    refuse(place / "bomb.zip", "200 times the archive's size")


def good(kind: str) -> bytes:
    if kind == "zip":
        return zip_of(*FILES.items())
    return tar_of(*FILES.items(), mode=f"w:{kind}")


@pytest.mark.trust("archives cut short", "a folder under its final name")
@pytest.mark.parametrize("kind", ["zip", "", "gz", "bz2", "xz"])
def test_archive_cut_at_20_points_is_refused(
    kind: str, place: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", 20)
    whole = good(kind)
    end = len(whole.rstrip(b"\0")) if kind == "" else len(whole)  # the tar's zeros at the end are padding
    for cut in (end * k // 20 for k in range(20)):
        (place / "cut").write_bytes(whole[:cut])
        refuse(place / "cut", "damaged|ends early|neither")


@pytest.mark.parametrize("kind", ["zip", "", "gz", "bz2", "xz"])
def test_good_archive_is_unpacked_whole_and_reports_its_progress(kind: str, place: Path) -> None:
    (place / "good").write_bytes(good(kind))
    reports: list[tuple[int, int]] = []
    folder = extract(place / "good", place / "data" / "set", progress=lambda done, total: reports.append((done, total)))
    assert folder == place / "data" / "set"
    assert {name: data for name, data in tree(folder).items() if data is not None} == FILES
    assert reports == sorted(reports) and reports[-1][0] == reports[-1][1]
    assert [path.name for path in (place / "data").iterdir()] == ["set"]


def test_modes_owners_and_macos_leftovers_are_dropped(place: Path) -> None:
    info, folder = tarfile.TarInfo("./train/a.jpg"), tarfile.TarInfo("./train")
    info.mode, info.uid, info.mtime = 0o6777, 12345, 1
    folder.type, folder.mode = tarfile.DIRTYPE, 0
    names = ("__MACOSX/train/._a.jpg", "train/.DS_Store")
    (place / "good.tar").write_bytes(tar_of((folder, b""), (info, b"x"), *((name, b"x") for name in names)))
    old = os.umask(0o022)
    try:
        extract(place / "good.tar", place / "data" / "set")
    finally:
        os.umask(old)
    assert list(tree(place / "data" / "set")) == ["train", "train/a.jpg"]
    status = (place / "data/set/train/a.jpg").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o644, os.getuid()) and status.st_mtime > 1e9
    assert stat.S_IMODE((place / "data/set/train").stat().st_mode) == 0o755
    assert stat.S_IMODE((place / "data/set").stat().st_mode) == 0o755


def test_destination_must_be_absent_or_empty(place: Path) -> None:
    (place / "good.zip").write_bytes(good("zip"))
    (place / "data/set").mkdir()
    extract(place / "good.zip", place / "data/set")
    before = tree(place)
    with pytest.raises(DataError, match="exists already"):
        extract(place / "good.zip", place / "data/set")
    (place / "link").symlink_to(place / "elsewhere")
    with pytest.raises(DataError, match="exists already"):
        extract(place / "good.zip", place / "link")
    with pytest.raises(DataError, match="No such file"):
        extract(place / "absent.zip", place / "data/other")
    (place / "link").unlink()
    assert tree(place) == before


def test_full_disk_is_one_line_and_leaves_nothing(place: Path) -> None:
    (place / "good.zip").write_bytes(good("zip"))
    before, limit = tree(place), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(DataError, match=r"can't be written to .*make room") as caught:
            extract(place / "good.zip", place / "data/set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not isinstance(caught.value, ArchiveError) and "\n" not in str(caught.value)
    assert tree(place) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from imgclf.fetch.archive import extract
def die(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
extract(Path(sys.argv[1]), Path(sys.argv[2]), progress=die)
"""


def test_killed_run_leaves_no_folder_and_the_next_removes_its_leftovers(place: Path) -> None:
    (place / "good.zip").write_bytes(good("zip"))
    command = [sys.executable, "-c", KILLED, str(place / "good.zip"), str(place / "data/set")]
    code = subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode
    assert code == -signal.SIGKILL
    leftovers = list((place / "data").iterdir())
    assert len(leftovers) == 1 and leftovers[0].name.startswith(".imgclf-set-")
    extract(place / "good.zip", place / "data/set")
    assert [path.name for path in (place / "data").iterdir()] == ["set"]


def test_folder_of_a_living_run_is_not_removed(place: Path) -> None:
    (place / "good.zip").write_bytes(good("zip"))
    nested: list[Path] = []

    def unpack_again(done: int, total: int) -> None:
        if not nested:
            nested.append(place / "data/set")
            extract(place / "good.zip", nested[0])

    with pytest.raises(DataError, match="can't be written"):  # the nested call was first, and its folder is whole
        extract(place / "good.zip", place / "data/set", progress=unpack_again)
    assert {name: data for name, data in tree(nested[0]).items() if data is not None} == FILES


def test_tree_is_copied_under_the_same_rules(place: Path) -> None:
    (place / "tree/train").mkdir(parents=True)
    (place / "tree/train/a.jpg").write_bytes(b"x")
    copy_tree(place / "tree", place / "data/set")
    assert tree(place / "data/set") == tree(place / "tree")
    (place / "tree/link.jpg").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match=r"'link\.jpg' is a link"):
        copy_tree(place / "tree", place / "data/other")
    assert not (place / "data/other").exists()
