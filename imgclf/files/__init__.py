"""Files on disk: atomic writing, and one module for each file format that is read with checks."""

from imgclf.files.atomic import cache_folder, write_atomically

__all__ = ["cache_folder", "model_file", "row_store", "run_folder", "write_atomically"]
