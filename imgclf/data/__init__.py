"""Files to samples to batches; the five data sets as facts."""
