"""The command line: settings from Hydra or argparse, and errors in one line."""
