"""One process that trains, checks, predicts and compares with data of odd names: `python name_session.py DATA OUT`.

Each command's stdout goes to OUT/<name>.out and its stderr to OUT/<name>.err, in the encoding that Python chose.
"""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from support.fabricate import TINY, composed

from imgclf import compare, predict
from imgclf.console import replace_unprintable
from imgclf.quality import check_data
from imgclf.training.run import train

data, out = Path(sys.argv[1]), Path(sys.argv[2])
ENCODING = sys.stdout.encoding


def record(name: str, command: Callable[[], object], stdin: bytes = b"") -> None:
    """Run a command with its streams recorded; a traceback ends the process."""
    before = sys.stdout, sys.stderr, sys.stdin
    streams = [io.TextIOWrapper((out / f"{name}.{end}").open("wb"), ENCODING, "strict") for end in ("out", "err")]
    (out / "stdin").write_bytes(stdin)
    sys.stdout, sys.stderr, sys.stdin = *streams, (out / "stdin").open(errors="surrogateescape")
    replace_unprintable()
    try:
        command()
    finally:
        for stream in streams:
            stream.close()
        sys.stdout, sys.stderr, sys.stdin = before


run, test = out / "run", str(data / "test")
words = [word for word in TINY if not word.startswith("report")]
settings = composed(*words, f"data_dir={data}", "trainer.max_epochs=1", "model.head.hidden=[]", "report=true")
long = sorted((data / "test").rglob("*.png"), key=lambda path: -len(os.fsencode(path.name)))[:2]
record("train", lambda: train(settings, run, ["data_dir=x"]))
record("check", lambda: check_data(composed("dataset=folders", f"data_dir={data}", config="check"), out / "check"))
record("table", lambda: predict.main([str(run), test]))
record("csv", lambda: predict.main([str(run), test, "--csv"]))
record("json", lambda: predict.main([str(run), test, "--json"]))
lines = b"".join(os.fsencode(path) + b"\n" for path in sorted((data / "test").rglob("*.png")) if "\n" not in str(path))
record("stdin", lambda: predict.main([str(run), "-", "--csv"]), lines)
record(
    "files", lambda: predict.main([str(run), test, "--save-to", str(out / "sorted"), "--grid", str(out / "grid.png")])
)
record("maps", lambda: predict.main([str(run), *map(str, long), "--explain", str(out / "maps")]))
record("compare", lambda: compare.main([str(run), "--out", str(out / "compared")]))
