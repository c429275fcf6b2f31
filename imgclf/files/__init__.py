"""Bytes on disk, written whole and read with distrust: two functions, and one module per file format."""

from imgclf.files.atomic import cache_folder, write_atomically

__all__ = ["cache_folder", "model_file", "row_store", "run_folder", "write_atomically"]
