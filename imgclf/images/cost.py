"""What a picture may cost before its pixels come: reads and bytes of its header, and the memory that decoding takes."""

import io

from PIL import Image, JpegImagePlugin, TiffImagePlugin

from imgclf.errors import ImageError
from imgclf.images.pillow import tiles

__all__ = ["HEADER_BYTES", "Metered", "bytes_per_pixel"]

HEADER_BYTES = 16 * 2**20  # all that may stand before the pixels, profiles and previews included


def bytes_per_pixel(image: Image.Image, file: io.BytesIO) -> float:
    """Peak memory of decoding, measured: Pillow's pixels, and the codec's buffers or the result, whichever is more."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        scan = file.tell() - 4 - 2 * image.layers  # where the first scan says how many components it holds
        if image.format == "JPEG" and "progressive" not in image.info and file.getbuffer()[scan] == image.layers:
            return stored + 3
        blocks = [horizontal * vertical for _, horizontal, vertical, _ in image.layer] or [1]
        return stored + max(3, 2 * sum(blocks) / max(1, max(blocks)))  # 16-bit coefficients wait for the last scan
    if image.format == "WEBP":
        return 16.5  # two canvases, a copy as bytes, Pillow's pixels
    if image.format == "GIF":
        return 5  # a first frame may be kept for disposal
    if image.format == "BMP" and tiles(image)[0][0] == "bmp_rle":
        return 60  # decoded in Python, at about 0.1 s a million pixels: it is time that this bounds
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(258, (1,))
        return stored + max(4, sum(bits if isinstance(bits, tuple) else (bits,)) / 8)  # one strip may hold all
    return stored + 3


class Metered(io.BytesIO):
    """A file in memory that ends a header's endless loops: Pillow's parsers make at least one read a step."""

    def __init__(self, data: bytes, bytes_left: float) -> None:
        super().__init__(data)
        self.reads_left = 200_000 + len(data) // 64
        self.bytes_left = bytes_left

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, until the meter has run out: `ImageError`."""
        chunk = super().read(size)
        self.reads_left -= 1
        self.bytes_left -= len(chunk)
        if self.reads_left < 0 or self.bytes_left < 0:
            raise ImageError("has too much before or between its pixels: save it again without metadata")
        return chunk
