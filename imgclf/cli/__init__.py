"""How a command starts: Hydra or argparse, and errors in one line."""
