"""File names of images: the suffixes that are read, and why a file with another one is not used.

Files of a folder are found by suffix and recognised by content (`imgclf.images.formats`); both name a format that isn't
read, with its remedy, by `REMEDIES`.
"""

import importlib.util
import os

from PIL import features

from imgclf.errors import install_hint

__all__ = ["IMAGE_SUFFIXES", "MISSING", "REMEDIES", "SUFFIXES", "unused_reason"]

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo")
# Format by Pillow's name -> suffixes of its files.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": _JPEG,
    "MPO": _JPEG,
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
}
_UPDATE = "this Pillow was built without it: install Pillow's own wheel (pip install --upgrade pillow)"
_CONVERT = "convert it to PNG or JPEG"
# What people call a format that isn't read -> what to do about a file of it.
REMEDIES = {
    "AVIF": _UPDATE,
    "JPEG 2000": _UPDATE,
    "HEIC": f"needs the extra heic; {install_hint('heic')}",
    "JPEG XL": _CONVERT,
    "PDF": "export its pages as images",
    "SVG": "export it as PNG",
    "PostScript": "export it as PNG",
    "Photoshop": "export it as PNG",
    "camera raw": "export it as JPEG or 16-bit TIFF",
    "DICOM": "export it as 16-bit PNG",
    "NetPBM": _CONVERT,
    "icon": _CONVERT,
    "other image format": _CONVERT,
    "video": "extract its frames as images",
    "archive": "unpack it",
    "array": "save each image in it as PNG",
}
_OTHERS = {
    "JPEG XL": ".jxl",
    "PDF": ".pdf",
    "SVG": ".svg .svgz",
    "PostScript": ".eps .ps .ai",
    "Photoshop": ".psd .psb",
    "camera raw": ".dng .cr2 .cr3 .crw .nef .nrw .arw .orf .raf .rw2 .pef .srw .raw",
    "DICOM": ".dcm .dicom",
    "NetPBM": ".ppm .pgm .pbm .pnm .pfm",
    "icon": ".ico .icns .cur",
    "other image format": ".tga .exr .hdr .dds .pcx .sgi .jxr .wdp .hdp .bpg .flif .qoi .xcf .emf .wmf .fits .dib .xbm .xpm",
    "video": ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .3gp .mts",
    "archive": ".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst",
    "array": ".npy .npz .mat .h5 .hdf5 .pkl .parquet .tfrecord",
}
# Formats that aren't read here, because their decoder isn't installed: Pillow's name -> the name in `REMEDIES`.
MISSING = {
    name: label
    for name, label, there in (
        ("AVIF", "AVIF", features.check("avif")),
        ("JPEG2000", "JPEG 2000", features.check("jpg_2000")),
        ("HEIF", "HEIC", importlib.util.find_spec("pillow_heif")),
    )
    if not there
}
# Suffixes, in lower case, of the files that are taken for images.
IMAGE_SUFFIXES = frozenset(suffix for name, some in SUFFIXES.items() if name not in MISSING for suffix in some)
_NAMES = {suffix: label for label, some in _OTHERS.items() for suffix in some.split()}
_NAMES |= {suffix: label for name, label in MISSING.items() for suffix in SUFFIXES[name]}


def unused_reason(name: str) -> str:
    """Return why a file of this name is not read as an image, by its suffix alone: "PDF: export its pages as images".

    Empty for a name with one of `IMAGE_SUFFIXES`. Files of one kind have one text, so that they can be counted by it.
    """
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122, one call per file
    if suffix in IMAGE_SUFFIXES:
        return ""
    if label := _NAMES.get(suffix):
        return f"{label}: {REMEDIES[label]}"
    return "no suffix of an image file"
