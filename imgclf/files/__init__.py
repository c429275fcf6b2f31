"""Bytes on disk, written whole and read with distrust."""
