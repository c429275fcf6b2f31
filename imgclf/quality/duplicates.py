"""Pictures that are the same, or the same but for compression and size; numpy alone, never all pairs.

Near duplicates are sought by a hash and confirmed by thumbnails. The hash holds 256 signs of differences between
neighbouring parts of a thumbnail, with a dead zone, so that noise in flat areas flips none. Two pictures are compared if
one of 16 bands of it, 16 bits each, is equal; of the many that share a band (blank pictures share all) only neighbours in
the order of a mean, which is another one in each band, so that the cost is bounded by N * BANDS * WINDOW.

What is confirmed is the same picture saved anew as JPEG (quality 50 and up), at half or a multiple of its size, or in
another format; frames of a video that differ by a hair count too. A crop or a brighter copy is another picture.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["SIDE", "copies_of", "exact_groups", "hashes", "near_groups", "verified"]

SIDE = 16  # pixels of a thumbnail: a card's pip still changes a cell by 20 levels and more, JPEG noise by less than 9
BANDS = 16
WINDOW = 32  # neighbours in a band that a picture is compared with
DEAD_ZONE = 4.0  # grey levels of 255
# Grey levels of 255. JPEG at quality 75 of half the size: 600 pictures of four data sets stay below 2.0 in the mean and
# below 9 in every cell; two cards of one design differ by more than 20 in the cells of a pip.
MEAN_GREY, MAX_GREY, MAX_COLOUR = 2.0, 9.0, 8.0
RELATIVE = 0.25  # of the pictures' contrast: low-texture pictures are alike in every absolute measure
BLANK = 1.0  # contrast in grey levels under which a picture shows nothing: those are told apart by colour alone
MOST = 4_000_000  # pairs that `copies_of` compares

Thumbnails = npt.NDArray[np.uint8]  # [N, SIDE, SIDE, 3]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def exact_groups(digests: npt.NDArray[np.uint64], keep: npt.NDArray[np.bool_]) -> list[Indices]:
    """The samples, of those to `keep`, that share a digest [N, 2]: groups of two and more, each in ascending order."""
    rows = np.flatnonzero(keep)
    _, label = np.unique(digests[rows], axis=0, return_inverse=True)
    return _split(rows, label.reshape(-1))


def near_groups(thumbnails: Thumbnails, keep: npt.NDArray[np.bool_]) -> list[Indices]:
    """Clusters, of two and more of the samples to `keep`, that chains of verified near duplicates hold together.

    Nearly all links are found, not all: one is missed when no band is equal, or in each more than WINDOW stand between.
    """
    rows = np.flatnonzero(keep)
    if not len(rows):
        return []
    flat = np.ascontiguousarray(thumbnails[rows]).reshape(len(rows), -1)
    _, first, inverse = np.unique(flat.view(f"V{flat.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    return _split(rows, _clusters(thumbnails[rows[first]])[inverse.reshape(-1)])


def copies_of(thumbnails: Thumbnails, originals: Indices, others: Indices) -> Indices:
    """Those of `others` that are verified near duplicates of one of the `originals`, which are of the same cluster.

    Of a cluster too large to compare all with all, which shows next to nothing, all others count.
    """
    if len(originals) * len(others) > MOST:
        return others
    pairs = np.stack(np.meshgrid(others, originals, indexing="ij"), axis=-1)  # [O, R, 2]
    return others[verified(thumbnails, pairs.reshape(-1, 2)).reshape(pairs.shape[:2]).any(axis=1)]


def hashes(thumbnails: Thumbnails) -> npt.NDArray[np.uint16]:
    """uint16 [N, BANDS]: the bands of the hash; every band draws its bits from the whole picture."""
    grey = _grey(thumbnails).astype(np.float32)
    rows, columns = grey.reshape(-1, 8, 2, 16).mean(axis=2), grey.reshape(-1, 16, 8, 2).mean(axis=3)
    steps = (np.roll(rows, 1, axis=2) - rows, np.roll(columns, 1, axis=1) - columns)  # 128 each
    bits = np.concatenate([step.reshape(-1, 128) for step in steps], axis=1) > DEAD_ZONE
    spread = np.random.default_rng(0).permutation(256)
    return np.ascontiguousarray(np.packbits(bits[:, spread], axis=1)).view(np.uint16)


def verified(thumbnails: Thumbnails, pairs: Indices) -> npt.NDArray[np.bool_]:
    """Which of the pairs [P, 2] are near duplicates by their thumbnails: bool [P]; symmetric."""
    used, place = np.unique(pairs, return_inverse=True)
    grey = _grey(thumbnails[used])
    return _verified(thumbnails[used], grey, _limits(grey), place.reshape(-1, 2))


def _verified(thumbnails: Thumbnails, grey: Thumbnails, limit: Floats, pairs: Indices) -> npt.NDArray[np.bool_]:
    result = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 4096):
        rows = np.arange(start, min(start + 4096, len(pairs)))
        one, other = pairs[rows].T
        error = np.abs(np.subtract(grey[one], grey[other], dtype=np.int16)).reshape(-1, SIDE**2)
        alike = (error.max(axis=1) <= MAX_GREY) & (error.mean(axis=1) <= np.minimum(limit[one], limit[other]))
        one, other = one[alike], other[alike]
        apart = np.abs(_colour(thumbnails[one]) - _colour(thumbnails[other])).max(axis=(1, 2, 3))
        result[rows[alike]] = apart <= MAX_COLOUR
    return result


def _clusters(thumbnails: Thumbnails) -> Indices:
    """int64 [N]: equal for the rows that verified pairs connect. Rows in one cluster already are not compared again."""
    grey, count = _grey(thumbnails), len(thumbnails)
    blocks = grey.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 16)
    # Means under orthogonal signs: as those of blocks, they differ by no more than the mean absolute difference does.
    bands, means, limit, label = hashes(thumbnails), blocks @ _signs() / 16, _limits(grey), np.arange(count)
    for band in range(BANDS):
        order = np.lexsort((means[:, band], bands[:, band]))
        key, first, second = bands[order, band], means[order, band], means[order, (band + 1) % BANDS]
        for step in range(1, min(WINDOW + 1, count)):
            close = (key[step:] == key[:-step]) & (first[step:] - first[:-step] <= MEAN_GREY)
            if not close.any():
                break
            near = np.flatnonzero(close & (np.abs(second[step:] - second[:-step]) <= MEAN_GREY))
            pairs = np.stack([order[near], order[near + step]], axis=1)
            pairs = pairs[label[pairs[:, 0]] != label[pairs[:, 1]]]
            one, other = pairs.T
            apart = np.abs(blocks[one] - blocks[other]).mean(axis=1)
            pairs = pairs[apart <= np.minimum(limit[one], limit[other])]
            label = _joined(label, pairs[_verified(thumbnails, grey, limit, pairs)])
    return label


def _joined(label: Indices, pairs: Indices) -> Indices:
    """The labels [N] after the clusters that the pairs connect became one: the least label stays."""
    while len(pairs):
        one, other = label[pairs].T
        pairs = pairs[one != other]
        np.minimum.at(label, np.maximum(one, other), np.minimum(one, other))
        while (label != label[label]).any():
            label = label[label]
    return label


def _signs() -> Floats:
    """[16, BANDS]: patterns of signs, each orthogonal to the others (Hadamard's)."""
    signs = np.ones((1, 1), np.float32)
    while len(signs) < BANDS:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs


def _limits(grey: Thumbnails) -> Floats:
    """float [N]: the mean absolute difference that a copy may have, in grey levels."""
    contrast = grey.reshape(-1, SIDE**2).std(axis=1, dtype=np.float32)
    return np.where(contrast < BLANK, BLANK, np.minimum(MEAN_GREY, RELATIVE * contrast)).astype(np.float32)


def _grey(thumbnails: Thumbnails) -> Thumbnails:
    """uint8 [N, SIDE, SIDE], ITU-R 601."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    parts = [thumbnails[start : start + 4096] @ weights for start in range(0, len(thumbnails), 4096)]
    return np.concatenate([np.empty((0, SIDE, SIDE), np.uint8), *(np.rint(part).astype(np.uint8) for part in parts)])


def _colour(thumbnails: Thumbnails) -> Floats:
    """float [N, 4, 4, 3]: what the colours are beside the grey; coarse, because JPEG halves the colours' resolution."""
    coarse = thumbnails.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4), dtype=np.float32)
    return coarse - coarse @ np.array([[0.299], [0.587], [0.114]], np.float32)


def _split(rows: Indices, label: Indices) -> list[Indices]:
    """The rows of equal label, where there are two or more, in the order of their first rows."""
    _, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[place.reshape(-1)] > 1)
    order = shared[np.argsort(label[shared], kind="stable")]
    cuts = np.flatnonzero(np.diff(label[order])) + 1
    return sorted((rows[group] for group in np.split(order, cuts) if len(group)), key=lambda group: int(group[0]))
