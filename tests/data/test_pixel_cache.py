"""The pixel cache: its batches, sharing, repair, limits and command."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fabricate import draw_image, draw_tree

import imgclf.data.pixel_cache as cache_module
from imgclf import ImageDataModule, Preprocess, RunError
from imgclf.cache import main as cache_command
from imgclf.config import CacheConfig
from imgclf.data.pixel_cache import CachedRows
from imgclf.errors import ConfigError
from imgclf.files.atomic import cache_folder
from imgclf.files.row_store import DiskStore, MemoryStore, key_of, list_stores

SIZE = 16


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that this process decodes from here on, in order."""
    files: list[str] = []
    read = cache_module.read_image

    def counting(source: Any, *args: Any) -> Any:
        files.append(str(source))
        return read(source, *args)

    monkeypatch.setattr(cache_module, "read_image", counting)
    return files


def module(root: Path, **options: Any) -> ImageDataModule:
    chosen: dict[str, Any] = {"preprocess": Preprocess(size=SIZE), "batch_size": 8, "num_workers": 0, **options}
    chosen["cache"] = CacheConfig(chosen.get("cache", "disk"), chosen.pop("cache_gb", 32.0))
    data = ImageDataModule(root, **chosen)
    data.setup()
    return data


def epoch(data: ImageDataModule, number: int = 0, split: str = "train", **options: Any) -> list[torch.Tensor]:
    loader = data.loader(split, shuffle="epoch", training=True, **options)
    loader.set_epoch(number)
    return [batch.images.clone() for batch in loader]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def store_file() -> Path:
    (path,) = cache_folder().glob("pixels/*/rows-*.bin")
    return path


@pytest.mark.parametrize("place", ["disk", "ram"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [None, {"rotation_degrees": 20, "horizontal_flip": True}])
def test_cached_batches_equal_uncached_ones(colours: Path, place: str, workers: int, augment: Any) -> None:
    plain = module(colours, cache="off", augment=augment)
    cached = module(colours, cache=place, augment=augment, num_workers=workers)
    for number in (0, 1, 3):
        assert same(epoch(cached, number), epoch(plain, number))


def test_each_image_is_decoded_once_for_all_runs(colours: Path, decoded: list[str]) -> None:
    first = epoch(module(colours), 0)
    assert sorted(decoded) == sorted(map(str, colours.glob("train/*/*")))
    for number in range(3):
        epoch(module(colours), number)  # later runs and other orders
    epoch(module(colours, fraction=0.5), 0)  # a part of the same images
    assert len(decoded) == 36
    assert same(epoch(module(colours), 0), first)
    assert [about["data"] for _, about, _ in list_stores(cache_folder())] == ["custom"]


@pytest.mark.parametrize(
    "change", [{"size": 20}, {"resize": "crop"}, {"resize": "letterbox"}, {"interpolation": "nearest"}], ids=str
)
def test_other_preprocessing_gets_its_own_cache(colours: Path, decoded: list[str], change: dict[str, Any]) -> None:
    epoch(module(colours))
    changed = Preprocess(**{"size": SIZE, **change})
    images = epoch(module(colours, preprocess=changed))
    assert len(decoded) == 72
    assert same(images, epoch(module(colours, preprocess=changed, cache="off")))


def test_only_images_of_the_next_batches_are_decoded(colours: Path, decoded: list[str]) -> None:
    loader = module(colours).loader("train", shuffle="epoch", training=True, limit=2)
    for _, _ in zip(range(2), loader, strict=False):
        pass
    assert len(decoded) == 16  # two batches of 8
    loader.load_state_dict({"epoch": 0, "batch": 1})
    next(iter(loader))
    assert len(decoded) == 16  # the second of them, a second time
    loader.set_epoch(1)
    wanted = {loader.samples.items[index] for index in loader.permutation(1)[:16]}
    seen = set(decoded)
    next(iter(loader))
    assert set(decoded) == seen | wanted


@pytest.mark.parametrize("how", ["another size", "another time"])
def test_changed_file_is_decoded_again(tmp_path: Path, decoded: list[str], how: str) -> None:
    root = draw_tree(tmp_path / "data", {"train": 3, "valid": 1, "test": 1})
    epoch(module(root))
    changed = root / "train" / "red" / "001.png"
    status = changed.stat()
    if how == "another size":
        draw_image(changed, (0, 0, 0), seed=5, size=25)
    else:
        draw_image(changed, (200, 40, 40), seed=4, size=24)
        os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    del decoded[:]
    images = epoch(module(root))
    assert decoded == [str(changed)]
    assert same(images, epoch(module(root, cache="off")))


def damage(path: Path, how: str) -> None:
    """Damage the rows in `path`, or their index."""
    data, index = bytearray(path.read_bytes()), path.parent / "index.bin"
    if how == "rows cut off":
        path.write_bytes(data[:-7])
    elif how == "a flipped bit":
        data[5 * SIZE * SIZE * 3 + 11] ^= 1
        path.write_bytes(data)
    elif how == "rows missing":
        path.unlink()
    elif how == "index cut off":
        index.write_bytes(index.read_bytes()[:-3])
    elif how == "index flipped":
        index.write_bytes(index.read_bytes()[:-1] + b"\xff")
    elif how == "index empty":
        index.write_bytes(b"")
    elif how == "index of another":
        index.write_bytes(b"imgclf rows 1\n" + bytes(200))
    elif how == "rows not in the index":  # killed between the two writes
        path.write_bytes(data + bytes(1000))


# Damage -> the number of images that are decoded again.
DAMAGES = {
    "rows cut off": 36,
    "a flipped bit": 1,
    "rows missing": 36,
    "index cut off": 36,
    "index flipped": 36,
    "index empty": 36,
    "index of another": 36,
    "rows not in the index": 0,
}


@pytest.mark.trust("cached images that are truncated, bit-flipped, cut off or missing", "a wrong pixel in a batch")
@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_cache_is_rebuilt_without_a_wrong_pixel(colours: Path, decoded: list[str], how: str) -> None:
    right = epoch(module(colours))
    damage(store_file(), how)
    del decoded[:]
    assert same(epoch(module(colours)), right)
    assert len(decoded) == DAMAGES[how]
    del decoded[:]
    assert same(epoch(module(colours)), right) and not decoded  # the cache is whole again


def test_bad_image_raises_its_name_and_earlier_chunks_stay_cached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw_tree(tmp_path / "data", {"train": 80, "valid": 1, "test": 1})
    bad = root / "train" / "green" / "050.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    with pytest.raises(Exception, match=r"green/050\.png"):
        epoch(module(root))
    bad.write_bytes(whole)
    assert same(epoch(module(root)), epoch(module(root, cache="off")))
    assert (
        "images prepared: 176 in" in capsys.readouterr().out
    )  # of 240: the chunk of 64 before the bad image was cached


def test_hanging_file_raises_run_error(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = cache_module.read_image

    def hanging(source: Any, *args: Any) -> Any:
        if str(source).endswith("red/007.png"):
            time.sleep(30)
        return read(source, *args)

    monkeypatch.setattr(cache_module, "read_image", hanging)
    with pytest.raises(RunError, match=r"decoding hangs: no image for 0\.5 s"):
        epoch(module(colours, timeout_seconds=0.5))


def test_full_cache_is_one_line_and_the_run_continues(
    colours: Path, capsys: pytest.CaptureFixture[str], decoded: list[str]
) -> None:
    data = module(colours, cache_gb=1e-6)
    first, _ = epoch(data), epoch(data, 1)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert (
        "images prepared, but not cached: 0.00 GB more than the 0.00 GB in use would exceed cache_gb=1e-06" in printed
    )
    assert len(decoded) == 72  # both epochs
    assert same(first, epoch(module(colours, cache="off")))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_one_line_and_the_run_continues(
    colours: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(DiskStore, "add", full)
    assert same(epoch(module(colours)), epoch(module(colours, cache="off")))
    assert "images prepared, but not cached: No space left on device" in capsys.readouterr().out


def test_cache_folder_that_cannot_be_created_is_one_line_and_the_run_continues(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "file"))
    assert same(epoch(module(colours)), epoch(module(colours, cache="off")))
    assert capsys.readouterr().out.startswith("images prepared, but not cached: ")


def test_interrupted_build_keeps_the_finished_chunk(tmp_path: Path, decoded: list[str]) -> None:
    root = draw_tree(tmp_path / "data", {"train": 80, "valid": 1, "test": 1})
    data = module(root)
    data.connect(data.preprocess, stop=lambda: True)
    right = epoch(module(root, cache="off"))
    del decoded[:]
    assert same(epoch(data), right)  # images that aren't cached are decoded when they are needed
    del decoded[:]
    epoch(module(root))
    assert len(decoded) == 240 - cache_module.CHUNK


def test_cache_cleared_during_a_run_changes_no_batch(
    colours: Path, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = module(colours, augment={"horizontal_flip": True})
    first = epoch(data, 0, limit=2)
    assert cache_command(["clear"]) == 0
    assert "cleared pixels/custom-" in capsys.readouterr().out
    assert not list_stores(cache_folder())
    right = epoch(module(colours, augment={"horizontal_flip": True}, cache="off"), 2)
    assert same(epoch(data, 2), right)
    assert same(epoch(data, 0, limit=2), first)


def test_cache_command_lists_and_clears_stores_that_are_not_in_use(
    colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch(module(colours))
    capsys.readouterr()
    assert cache_command([]) == 0
    printed = capsys.readouterr().out
    assert "0.0 MB  pixels/custom-" in printed and "16 x 16 x 3, squash, from" in printed and str(colours) in printed
    assert cache_command(["clear", "pixels/nothing"]) == 2
    assert "holds no pixels/nothing" in capsys.readouterr().err
    (store,) = list_stores(cache_folder())
    held = DiskStore(store[0], (SIZE, SIZE, 3), "uint8", {}, 1e9)
    with held.lock:
        assert cache_command(["clear"]) == 1
    assert "is in use by a run" in capsys.readouterr().err


def test_memory_and_disk_stores_behave_alike(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    keys = [key_of(bytes([n])) for n in range(4)]
    for store in (DiskStore(tmp_path / "a" / "b", (2, 3), "float32", {}, 1e9), MemoryStore((2, 3), "float32", 4, 1e9)):
        assert store.find(keys).tolist() == [-1] * 4
        assert store.add(keys[:2], numbers[:2]).tolist() == [0, 1]
        assert store.add(keys[2:3], numbers[2:3]).tolist() == [2]
        store.commit()
        assert store.find(keys[::-1]).tolist() == [-1, 2, 1, 0]
        chosen = np.array([2, 0, -1])
        rows, whole = store.rows.take(chosen, store.checksums(chosen))
        assert np.array_equal(rows[:2], numbers[[2, 0]]) and whole.tolist() == [True, True, False]
        none = np.zeros(0, np.int64)  # a process's part of a last batch that has fewer images than there are processes
        rows, whole = store.rows.take(none, store.checksums(none))
        assert rows.shape == (0, 2, 3) and whole.shape == (0,)


def test_two_processes_see_each_others_rows(tmp_path: Path) -> None:
    """Each process reads the rows that the other added, and no row is lost."""
    numbers = np.arange(12, dtype=np.uint8).reshape(6, 2)
    keys = [key_of(bytes([n])) for n in range(6)]
    ours, theirs = (DiskStore(tmp_path / "a" / "b", (2,), "uint8", {}, 1e9) for _ in range(2))
    for store, part in ((ours, slice(0, 2)), (theirs, slice(2, 4)), (ours, slice(4, 6))):
        with store.lock:
            missing = store.find(keys[part])
            assert (missing < 0).all()
            store.add(keys[part], numbers[part])
            store.commit()
    for store in (ours, theirs):
        found = store.find(keys)
        rows, whole = store.rows.take(found, store.checksums(found))
        assert np.array_equal(rows, numbers) and whole.all()


def test_cache_settings_outside_their_range_raise_config_error() -> None:
    with pytest.raises(ConfigError, match="cache='tape': expected one of disk, ram, off"):
        CacheConfig("tape")
    with pytest.raises(ConfigError, match="cache_gb=-1: expected a number of at least 0"):
        CacheConfig("disk", -1)


def test_rows_of_a_csv_are_resized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (12, 64))
    text = "\n".join(",".join(map(str, [n % 2, *row])) for n, row in enumerate(rows))
    (tmp_path / "data").mkdir()
    for name in ("train.csv", "val.csv", "test.csv"):
        (tmp_path / "data" / name).write_text(text + "\n")
    splits = {split: {"kind": "pixels", "files": [f"{split}.csv"]} for split in ("train", "val", "test")}
    fitted: list[int] = []
    fit = cache_module.fit
    monkeypatch.setattr(cache_module, "fit", lambda *args: (fitted.append(1), fit(*args))[1])
    data = module(tmp_path / "data", splits=splits)
    first, _ = epoch(data), epoch(data, 1)
    assert len(fitted) == 12
    assert same(first, epoch(module(tmp_path / "data", splits=splits, cache="off")))


def test_store_adds_little_memory(tmp_path: Path) -> None:
    """Reading every row of the store adds less than a quarter of its size in anonymous memory."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    store = DiskStore(tmp_path / "a" / "b", (1024, 1024), "uint8", {}, 1e12)
    keys = [key_of(n.to_bytes(2, "little")) for n in range(96)]

    def compute(indices: Any) -> Any:
        return (np.full((1, 1024, 1024), i, np.uint8) for i in indices)

    rows = CachedRows(store, 96, "rows", lambda indices: [keys[i] for i in indices], compute)

    def anonymous() -> int:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024

    before = anonymous()
    rows.prepare(np.arange(96))
    for number in range(96):
        (row,), (whole,) = rows.take(np.array([number]))
        assert whole and row[5, 5] == number
    assert anonymous() - before < 24  # MiB, of 96


def test_file_that_changes_while_it_is_decoded_is_new_in_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run may see the old pixels or the new ones; the next run must see the new ones."""
    root = draw_tree(tmp_path / "data", {"train": 3, "valid": 1, "test": 1})
    changed, read = root / "train" / "red" / "001.png", cache_module.read_image

    def late(source: Any, *args: Any) -> Any:
        pixels = read(source, *args)
        if Path(source) == changed:
            draw_image(changed, (0, 0, 0), seed=5, size=25)
        return pixels

    monkeypatch.setattr(cache_module, "read_image", late)
    epoch(module(root))
    monkeypatch.setattr(cache_module, "read_image", read)
    assert same(epoch(module(root)), epoch(module(root, cache="off")))
