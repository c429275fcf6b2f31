#!/usr/bin/env sh
# Install imgclf into .venv, train on playing cards that are drawn on the spot, reload the checkpoint, and predict.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || python3 -m venv .venv
echo "installing into .venv (PyTorch is large: some minutes, once)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[fast]"

run="outputs/first_run/$(date +%Y-%m-%d_%H-%M-%S)-$$"
.venv/bin/imgclf train experiment=cards_demo "hydra.run.dir=$run"

echo
echo "The checkpoint, loaded in a new process, says of the first test pictures (its best three classes):"
set --
for folder in "ace of hearts" "joker" "queen of spades" "ten of clubs"; do
    set -- "$@" "$(.venv/bin/python -c 'import sys; from imgclf.demo.datasets import demo_folder; print(demo_folder("cards") / "test" / sys.argv[1] / "1.jpg")' "$folder")"
done
.venv/bin/imgclf predict "$run/checkpoints/best.ckpt" "$@"
echo
echo "Look at $run: metrics.json, history.csv, predictions_test.csv, curves.png, confusion_test.png, checkpoints/best.ckpt"
