#!/usr/bin/env sh
# Install imgclf into .venv, train on drawn playing cards, load the checkpoint in a new process, and predict.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
echo "Installing into .venv (PyTorch is large; the first time takes some minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[fast]"

run="outputs/first_run/$(date +%Y-%m-%d_%H-%M-%S)-$$"
.venv/bin/imgclf train experiment=cards_demo "hydra.run.dir=$run"

echo
echo "Predictions of the saved checkpoint for four test images (the best three classes of each):"
test=$(.venv/bin/python -c 'from imgclf.demo import demo_folder; print(demo_folder("cards") / "test")')
.venv/bin/imgclf predict "$run" \
    "$test/ace of hearts/1.jpg" "$test/joker/1.jpg" "$test/queen of spades/1.jpg" "$test/ten of clubs/1.jpg"
echo
echo "Activate the environment (. .venv/bin/activate), then use the model or open its report:"
.venv/bin/python - "$run" <<'PYTHON'
import sys
from pathlib import Path

from imgclf.console import lines_of_model, print_lines_to_copy

run = Path(sys.argv[1])
print_lines_to_copy(lines_of_model(run / "checkpoints" / "best.ckpt", run / "report.html"))
PYTHON
