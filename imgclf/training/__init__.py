"""One run: start, stop, resume, finish."""
