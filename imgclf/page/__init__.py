"""The files of the page that classifies images: `imgclf serve` serves them, and `imgclf.exporting` makes them static."""
