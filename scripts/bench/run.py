"""imgclf beside Keras, fastai, a plain timm loop and plain Lightning: measure, keep the raw results, write the page.

    python scripts/bench/run.py --data DIR                 every job that has no result yet; hours
    python scripts/bench/run.py --data DIR --jobs startup,size --again
    python scripts/bench/run.py --data DIR --quick         all of them at toy size; minutes
    python scripts/bench/run.py --page-only                only the page, from the results

DIR holds the data sets, each in a folder of its name (sports, cards, asl_alphabet, rock_paper_scissors, sign_mnist).
Keras and fastai get virtual environments of their own from `requirements/`, made on first use.
"""

import argparse
import datetime
import json
import os
import shutil
import tempfile
from pathlib import Path

from jobs import FITS, OTHERS, measure_fit
from page import write_page
from process import Bench, Run

from imgclf.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[2]
VENVS = Path("~/.cache/imgclf-bench/venvs").expanduser()


def main() -> None:
    """Run the jobs one by one, keep each result, and write the page; an interrupted series continues where it was."""
    options = _options()
    results: Run = {"meta": {}, "jobs": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    if not options.page_only:
        _measure(options, results)
    write_page(results, options.page, options.date)
    print(f"{options.out}, {options.page}")


def _measure(options: argparse.Namespace, results: Run) -> None:
    names = options.jobs.split(",") if options.jobs else [*FITS, *OTHERS]
    if unknown := sorted(set(names) - set(FITS) - set(OTHERS)):
        raise SystemExit(f"no job {', '.join(unknown)}; there are {', '.join([*FITS, *OTHERS])}")
    results["meta"] = _meta(options.date)
    for name in names:
        if name in results["jobs"] and not options.again:
            print(f"{name}: measured already")
            continue
        print(f"{name}:", flush=True)
        results["jobs"][name] = {**_run_job(name, options), "quick": options.quick}
        write_atomically(options.out, json.dumps(results, indent=1) + "\n")


def _meta(date: str | None) -> Run:
    from imgclf.files.run_folder import describe_environment  # here, because it loads torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    meta = {"date": date or datetime.date.today().isoformat(), "memory_gib": round(memory), **describe_environment()}
    del meta["command"]  # it names folders of this machine
    return meta


def _run_job(name: str, options: argparse.Namespace) -> Run:
    work = Path(tempfile.mkdtemp(prefix="imgclf-bench-"))
    limits = (options.repeats, options.peer_epochs, options.quick)
    bench = Bench(options.data, work, options.venvs, options.weights, *limits)
    try:
        result = measure_fit(bench, FITS[name]) if name in FITS else OTHERS[name](bench)
    except Exception as error:  # one job's failure goes on the page, and the series continues
        result = {"failed": " ".join(str(error).split())[:300] or type(error).__name__}
        print(f"  failed: {result['failed']}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for run in result.get("runs", []):
        run.pop("folder", None)
    return result


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", help="names of jobs, separated by commas (default: all)")
    parser.add_argument("--data", type=_folder, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, help="folder of safetensors for imgclf; seconds don't depend on them")
    parser.add_argument("--venvs", type=_folder, default=VENVS, help="folder of the virtual environments")
    parser.add_argument("--repeats", type=int, default=3, help="runs of imgclf per job (default: 3)")
    parser.add_argument("--peer-epochs", type=int, default=3, help="epochs of a peer; the rest is extrapolated")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--again", action="store_true", help="repeat jobs that have a result")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench" / "results.json", help="results file")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md", help="page to write")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results file")
    parser.add_argument("--date", help="date on the page (default: today)")
    options = parser.parse_args()
    if not options.page_only and options.data is None:
        parser.error("--data DIR is needed")
    return options


if __name__ == "__main__":
    main()
