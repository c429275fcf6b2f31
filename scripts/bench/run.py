"""imgclf beside Keras, fastai, a plain timm loop and plain Lightning: measure, keep the raw results, write the page.

    python scripts/bench/run.py --data DIR                 every job that has no result yet; hours
    python scripts/bench/run.py --data DIR --jobs startup,size --again
    python scripts/bench/run.py --data DIR --quick         all of them at toy size; minutes
    python scripts/bench/run.py --page-only                the page from the results

DIR holds the data sets, each in a folder of its name (sports, cards, asl_alphabet, rock_paper_scissors, sign_mnist). Peers
get virtual environments of their own from `requirements/`, made on first use.
"""

import argparse
import datetime
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from page import write_page

from imgclf.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[2]
VENVS = Path("~/.cache/imgclf-bench/venvs").expanduser()


def main() -> None:
    """Run what is asked for, job by job; a series that was interrupted goes on where it was."""
    options = _options()
    results: dict[str, Any] = {"meta": {}, "jobs": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    if not options.page_only:
        _measure(options, results)
    write_page(results, options.page, options.date)
    print(f"{options.out}, {options.page}")


def _measure(options: argparse.Namespace, results: dict[str, Any]) -> None:
    from bench import Bench  # here, because these load torch, which the page doesn't need
    from fits import FITS, measure_fit
    from others import OTHERS

    from imgclf.files.run_folder import describe_environment

    names = options.jobs.split(",") if options.jobs else [*FITS, *OTHERS]
    if unknown := sorted(set(names) - set(FITS) - set(OTHERS)):
        raise SystemExit(f"no job {', '.join(unknown)}; there are {', '.join([*FITS, *OTHERS])}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    date = options.date or datetime.date.today().isoformat()
    results["meta"] = {"date": date, "memory_gib": round(memory), **describe_environment()}  # fmt: skip
    results["meta"].pop("command")  # it names folders of this machine
    for name in names:
        if name in results["jobs"] and not options.again:
            print(f"{name}: measured already")
            continue
        print(f"{name}:", flush=True)
        work = Path(tempfile.mkdtemp(prefix="imgclf-bench-"))
        bench = Bench(
            options.data, work, options.venvs, options.weights, options.repeats, options.peer_epochs, options.quick
        )
        try:
            found = measure_fit(bench, FITS[name]) if name in FITS else OTHERS[name](bench)
        except Exception as error:  # of one job, told on the page: the series goes on
            found = {"failed": " ".join(str(error).split())[:300] or type(error).__name__}
            print(f"  failed: {found['failed']}", flush=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for run in found.get("runs", []):
            run.pop("folder", None)
        results["jobs"][name] = {**found, "quick": options.quick}
        _save(options.out, results)


def _save(path: Path, results: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(results, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", help="names with commas between them; all by default")
    parser.add_argument("--data", type=lambda text: Path(text).expanduser().absolute(), help="folder of the data sets")
    parser.add_argument("--weights", type=Path, help="folder of safetensors for imgclf; seconds don't depend on them")
    parser.add_argument("--venvs", type=lambda text: Path(text).expanduser().absolute(), default=VENVS)
    parser.add_argument("--repeats", type=int, default=3, help="of imgclf")
    parser.add_argument("--peer-epochs", type=int, default=3, help="the rest is extrapolated, and said to be")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--again", action="store_true", help="measure what has results already")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench" / "results.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--date", help="for the page")
    options = parser.parse_args()
    if not options.page_only and options.data is None:
        parser.error("--data DIR is needed")
    return options


if __name__ == "__main__":
    main()
