"""Data sets: finding their files, splitting them into samples, and loading batches."""
