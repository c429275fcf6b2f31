"""Numbers and images as matplotlib figures, and figures as PNG files."""
