"""Duplicates are found however they were saved, similar images are not taken for duplicates, and the cost is bounded."""

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.fabricate import as_jpeg, resized, structured

import imgclf
from imgclf.data.samples import Samples
from imgclf.quality.scan import (
    SIDE,
    ImageInfo,
    Scan,
    copies_of,
    exact_groups,
    hashes,
    near_groups,
    scan,
    verified,
)


def scanned(folder: Path, images: list[np.ndarray], workers: int = 0) -> Scan:
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    items = tuple(str(path) for path in sorted(folder.glob("*.png")))
    return scan([Samples(items, np.zeros(len(items), np.int64), ("a", "b"))], workers)


def everything(values: np.ndarray) -> np.ndarray:
    return np.ones(len(values), dtype=bool)


def lists(groups: list[np.ndarray]) -> list[list[int]]:
    return [group.tolist() for group in groups]


def test_saved_copies_are_near_duplicates_and_changed_images_are_not(tmp_path: Path) -> None:
    first, second, third = (structured(seed) for seed in range(3))
    mirrored, cropped = first[:, ::-1], first[6:-6, 6:-6]
    changed = second.copy()
    changed[40:56, 40:56] = 255 - changed[40:56, 40:56]  # one pip of a card
    recoloured = np.ascontiguousarray(third[:, :, ::-1])
    copies = [
        as_jpeg(first, 75),
        resized(first, 60, 60),
        as_jpeg(resized(first, 90, 70), 85),
        resized(second, 240, 240),
    ]
    scan_ = scanned(tmp_path, [first, second, third, mirrored, cropped, changed, recoloured, *copies])
    assert lists(near_groups(scan_.thumbnails, scan_.readable)) == [[0, 7, 8, 9], [1, 10]]
    assert exact_groups(scan_.digests, scan_.readable) == []


def test_300_distinct_images_have_no_near_duplicates(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    noisy = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(100)]
    faint = [(235 + (structured(1000 + seed, 32) - 128.0) / 24).astype(np.uint8) for seed in range(100)]  # on white
    scan_ = scanned(tmp_path, [*noisy, *(structured(seed, 40) for seed in range(100)), *faint])
    assert near_groups(scan_.thumbnails, scan_.readable) == []


def test_neighbouring_frames_of_a_slow_motion_are_not_near_duplicates(tmp_path: Path) -> None:
    frames = []
    for shift in range(0, 60, 6):  # a bright hand moves over a still background, a twentieth of the side a frame
        frame = structured(3).copy()
        frame[40:80, 20 + shift : 50 + shift] = 250
        frames.append(frame)
    scan_ = scanned(tmp_path, frames)
    assert near_groups(scan_.thumbnails, scan_.readable) == []


def test_exact_duplicates_have_equal_pixels_in_any_format(tmp_path: Path) -> None:
    pixels = structured(0, 20)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.bmp")
    Image.fromarray(pixels.reshape(10, 40, 3)).save(tmp_path / "c.png")
    items = tuple(str(tmp_path / name) for name in ("a.png", "b.bmp", "c.png"))
    scan_ = scan([Samples(items, np.zeros(3, np.int64), ("a", "b"))])
    assert lists(exact_groups(scan_.digests, scan_.readable)) == [[0, 1]]
    assert scan_.infos[1] == ImageInfo("BMP", "RGB", 20, 20)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_of_pixels_are_scanned_in_memory(channels: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 28, 28, channels), dtype=np.uint8)
    pixels[49] = pixels[7]
    scan_ = scan([Samples(tuple(f"x.csv:{n}" for n in range(50)), np.zeros(50, np.int64), ("a", "b"), pixels)])
    assert lists(exact_groups(scan_.digests, scan_.readable)) == [[7, 49]]
    assert scan_.infos[0] == ImageInfo("row", "L" if channels == 1 else "RGB", 28, 28)
    assert scan_.thumbnails.shape == (50, SIDE, SIDE, 3)


def test_worker_processes_give_the_same_scan_as_one(tmp_path: Path) -> None:
    (tmp_path / "0000.png").write_bytes(b"nothing")
    images = [structured(seed, 24) for seed in range(70)]
    for number, image in enumerate(images, start=1):
        Image.fromarray(image).save(tmp_path / f"{number:04}.png")
    items = tuple(str(path) for path in sorted(tmp_path.glob("*.png")))
    samples = Samples(items, np.zeros(len(items), np.int64), ("a", "b"))
    done: list[int] = []
    alone, together = scan([samples]), scan([samples], 2, done.append)
    assert sum(done) == 71 and alone.infos == together.infos and isinstance(alone.infos[0], str)
    np.testing.assert_array_equal(alone.digests, together.digests)
    np.testing.assert_array_equal(alone.thumbnails, together.thumbnails)
    assert alone.readable.tolist() == [False] + [True] * 70


SCAN_AND_WAIT = """
import multiprocessing, sys, time
import numpy as np
from imgclf.data.samples import Samples
from imgclf.quality.scan import scan

def wait(count):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)

scan([Samples(tuple(sys.argv[1:]) * 200, np.zeros(200, np.int64), ("a", "b"))], 2, wait)
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the state of processes is read from /proc")
def test_worker_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    Image.fromarray(structured(0, 24)).save(tmp_path / "image.png")
    command = [sys.executable, "-c", SCAN_AND_WAIT, str(tmp_path / "image.png")]
    root = Path(imgclf.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(map(running, workers))
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, workers))


def test_blank_images_of_one_shade_are_one_group() -> None:
    white = np.full((200, SIDE, SIDE, 3), 250, np.uint8)
    grainy = np.random.default_rng(0).integers(249, 252, (3000, SIDE, SIDE, 3)).astype(np.uint8)
    black = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    groups = near_groups(np.concatenate([white, grainy, black]), np.ones(3202, dtype=bool))
    assert lists(groups) == [list(range(3200)), [3200, 3201]]


def test_300_near_duplicates_are_found_among_87_000_images() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (87_000, 4, 4, 3)).astype(np.uint8)
    thumbnails = coarse.repeat(4, axis=1).repeat(4, axis=2)
    thumbnails[:, ::2] //= 2
    originals = rng.choice(86_000, 300, replace=False)
    planted = 86_000 + np.arange(300)
    noise = rng.integers(-1, 2, (300, SIDE, SIDE, 3))
    thumbnails[planted] = np.clip(thumbnails[originals].astype(np.int64) + noise, 0, 255)
    groups = near_groups(thumbnails, everything(thumbnails))
    assert sorted(lists(groups)) == sorted([int(a), int(b)] for a, b in zip(originals, planted, strict=True))


def test_groups_equal_those_of_comparing_all_pairs() -> None:
    """The reference verifies every pair and joins them one by one."""
    rng = np.random.default_rng(1)
    base = np.stack([cv2.resize(structured(seed), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for seed in range(60)])
    drawn = base[rng.integers(0, 60, 200)].astype(np.float64)
    thumbnails = np.clip(drawn + rng.uniform(-6, 6, (200, 1, 1, 1)), 0, 255).astype(np.uint8)  # a chain of brightness
    label = np.arange(200)
    pairs = np.stack(np.triu_indices(200, 1), axis=1)
    for one, other in pairs[verified(thumbnails, pairs)]:
        label[label == label[other]] = label[one]
    expected = {tuple(np.flatnonzero(label == value)) for value in set(label.tolist())}
    groups = {tuple(group) for group in near_groups(thumbnails, everything(thumbnails))}
    assert groups == {group for group in expected if len(group) > 1} and max(map(len, groups)) > 2


def test_verification_is_symmetric_and_copies_are_direct_neighbours() -> None:
    ramp = np.broadcast_to(np.arange(SIDE, dtype=np.uint8)[None, :, None] * 10, (SIDE, SIDE, 3))
    chain = np.stack([ramp, ramp + np.uint8(2), ramp + np.uint8(4)])  # each is near the next, the ends aren't near
    pairs = np.array([[0, 1], [1, 0], [1, 2], [0, 2], [2, 0]])
    assert verified(chain, pairs).tolist() == [True, True, True, False, False]
    assert lists(near_groups(chain, everything(chain))) == [[0, 1, 2]]
    assert copies_of(chain, np.array([0]), np.array([1, 2])).tolist() == [1]
    assert copies_of(chain, np.array([], np.int64), np.array([1, 2])).tolist() == []


def test_empty_input_gives_empty_groups() -> None:
    nothing = np.empty((0, SIDE, SIDE, 3), np.uint8)
    assert near_groups(nothing, everything(nothing)) == []
    assert exact_groups(np.empty((0, 2), np.uint64), np.empty(0, bool)) == []
    assert hashes(np.full((1, SIDE, SIDE, 3), 9, np.uint8)).tolist() == [[0] * 16]
    assert scan([]).thumbnails.shape == (0, SIDE, SIDE, 3)
