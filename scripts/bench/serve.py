"""Compare `imgclf serve` with LitServe and with a FastAPI service as tutorials write it, and flood it with 10,000 requests.

    python scripts/bench/serve.py --model outputs/cards_v2 --images <folder of JPEG files> --out serve.json
    python scripts/bench/serve.py --model outputs/cards_v2 --images <folder of JPEG files> --flood 10000

All sides run the same network at the same size on the CPU, one after another, and get the same multipart bodies over
keep-alive connections from this process. Latencies are those of whole requests; `--repeats` rounds are made in turn, and the
median of the rounds is printed. Install weight: files of the packages that a side needs beyond imgclf's own.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from importlib import metadata
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from process import HERE, _memory

CLIENTS = (1, 8, 64)
WARM_SECONDS, IDLE_SECONDS, START_SECONDS = 1.5, 3.0, 120
PACKAGES = {
    "imgclf serve": ("starlette", "uvicorn", "python-multipart", "prometheus-client"),
    "LitServe": ("litserve",),
    "FastAPI": ("fastapi", "uvicorn", "python-multipart"),
}
KINDS = ("good",) * 6 + (
    "two",
    "truncated",
    "empty",
    "html",
    "bomb",
    "large",
    "parameter",
    "model",
    "type",
    "private",
    "path",
)
EXPECTED = {
    "good": 200,
    "two": 200,
    "large": 413,
    "parameter": 400,
    "model": 404,
    "type": 415,
    "path": 404,
}  # all others 422; 429 is an answer to each


def main() -> None:
    """Measure what the options ask for, and print it as tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="run's folder or checkpoint, such as of MobileNetV2 at 224 pixels"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files, also below it")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement (default: 8)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--flood", type=int, metavar="N", help="send N good and bad requests in place of the comparison"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    images = [path.read_bytes() for path in sorted(options.images.rglob("*.jpg"))[:200]]
    result = flood(options, images) if options.flood else compare(options, images)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def sides(model: str) -> dict[str, tuple[list[str], str]]:
    """Return the command of each side without its port, and the name in `PACKAGES`."""
    facts = json.loads(run_facts(model))
    job = {"model": model, "batch": 16, "wait_seconds": 0.0}
    ours = [sys.executable, "-m", "imgclf.serve", model, "--device", "cpu"]
    lit, fast = str(HERE / "peers" / "serve_litserve.py"), str(HERE / "peers" / "serve_fastapi.py")
    return {
        "imgclf serve": (ours, "imgclf serve"),
        "imgclf serve --engine openvino": ([*ours, "--engine", "openvino"], "imgclf serve"),
        "LitServe, batch 16": ([sys.executable, lit, json.dumps(job)], "LitServe"),
        "LitServe, no batches": ([sys.executable, lit, json.dumps({**job, "batch": 1})], "LitServe"),
        "FastAPI + torch": ([sys.executable, fast, json.dumps(facts)], "FastAPI"),
    }


def run_facts(model: str) -> str:
    """Return backbone, number of classes and size of a model as JSON, read in a process of its own."""
    code = (
        "import imgclf, json, sys; p = imgclf.load(sys.argv[1], 'cpu'); "
        "print(json.dumps({'backbone': p.model.network.backbone.name, 'classes': len(p.classes), "
        "'size': p.model.preprocess.size}))"
    )
    return subprocess.run([sys.executable, "-c", code, model], check=True, capture_output=True, text=True).stdout


class Service:
    """A side's processes while they run, in a group of their own."""

    def __init__(self, command: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        if command[-1].startswith("{"):
            command = [*command[:-1], json.dumps({**json.loads(command[-1]), "port": self.port})]
        else:
            command = [*command, "--port", str(self.port)]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while not self.answers():
            if self.process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                self.stop()
                raise SystemExit(f"{' '.join(command)}: didn't start")
            time.sleep(0.1)
        self.start_seconds = time.perf_counter() - began

    def answers(self) -> bool:
        """Return whether GET /health is answered with 200."""
        try:
            return asyncio.run(ask_once(self.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")) == 200
        except (OSError, ValueError, asyncio.IncompleteReadError):
            return False

    def memory(self) -> tuple[float, float]:
        """Return anonymous and resident MiB of all processes of the side."""
        return _memory(self.process.pid)

    def stop(self) -> int:
        """End the processes, and return the exit code."""
        self.process.terminate()
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            code = -1
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        return code


async def ask_once(port: int, request: bytes) -> int:
    """Return the status of one request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return (await read_answer(reader))[0]
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Return the status of an answer, and whether its connection stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    match = re.search(rb"(?i)content-length: (\d+)", head)
    await reader.readexactly(int(match[1]) if match else 0)
    return int(head[9:12]), b"connection: close" not in head.lower()


def form_request(*images: bytes, path: str = "/predict") -> bytes:
    """Return a request with image files in the field images."""
    part = (
        b'--part\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    body = b"".join(part + image + b"\r\n" for image in images) + b"--part--\r\n"
    return head(path, "multipart/form-data; boundary=part", len(body)) + body


def head(path: str, kind: str, length: int) -> bytes:
    """Return the head of a POST."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()
    )


async def load(port: int, clients: int, seconds: float, requests: list[bytes]) -> dict[str, float]:
    """Return latencies in ms and images per second of so many clients, each of which asks again once it is answered."""
    numbers, latencies, statuses = count(), list[float](), Counter[int]()
    began = time.perf_counter() + WARM_SECONDS
    end = began + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (sent := time.perf_counter()) < end:
            writer.write(requests[next(numbers) % len(requests)])
            status, stays = await read_answer(reader)
            now = time.perf_counter()
            if began <= now:
                latencies.append(now - sent)
                statuses[status] += now <= end
            if not stays:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    latencies.sort()
    return {
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
        "images_per_second": statuses[200] / seconds,
        "not_200": sum(statuses.values()) - statuses[200],
    }


def compare(options: argparse.Namespace, images: list[bytes]) -> dict[str, Any]:
    """Print the table of all sides, and return its figures."""
    requests = [form_request(image) for image in images]
    rounds: dict[str, list[dict[str, Any]]] = {}
    known = sides(options.model)
    for number in range(options.repeats):
        for name, (command, _) in known.items():
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            service = Service(command)
            try:
                time.sleep(IDLE_SECONDS)
                anonymous, resident = service.memory()
                figures: dict[str, Any] = {"start_seconds": service.start_seconds, "anonymous_mib": anonymous}
                figures["resident_mib"] = resident
                for clients in CLIENTS:
                    figures[str(clients)] = asyncio.run(load(service.port, clients, options.seconds, requests))
            finally:
                service.stop()
            rounds.setdefault(name, []).append(figures)
    result: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    row = "{:<32}{:>9}{:>9}{:>9}" + "{:>9}{:>9}{:>9}" * len(CLIENTS)
    titles = [f"{what}@{clients}" for clients in CLIENTS for what in ("p50", "p99", "img/s")]
    print(row.format("side", "install", "anon", "start", *titles))
    for name, figures in rounds.items():
        middle = {
            key: median(entry[key] for entry in figures) for key in ("start_seconds", "anonymous_mib", "resident_mib")
        }
        weight = install_megabytes(PACKAGES[known[name][1]])
        result[name] = {"install_mb": weight, **middle, "rounds": figures}
        cells = [f"{weight:.1f}", f"{middle['anonymous_mib']:.0f}", f"{middle['start_seconds']:.1f}"]
        for clients in CLIENTS:
            for key in ("p50_ms", "p99_ms", "images_per_second"):
                value = median(entry[str(clients)][key] for entry in figures)
                result[name][f"{key}@{clients}"] = value
                cells.append(f"{value:.0f}" if value >= 100 else f"{value:.1f}")
        print(row.format(name, *cells))
    return result


def install_megabytes(names: tuple[str, ...]) -> float:
    """Return the MB of files of these packages and all that they require, without what imgclf itself requires."""
    return sum(file_bytes(name) for name in closure(names) - closure(("imgclf",))) / 1e6


def closure(names: tuple[str, ...]) -> set[str]:
    """Return the names of the packages and of all that they require, as far as they are installed here, without extras."""
    known, left = set[str](), [normal(name) for name in names]
    while left:
        name = left.pop()
        if name in known:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        known.add(name)
        left += [normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in requires if "extra ==" not in text]
    return known


def normal(name: str) -> str:
    """Return a package's name as indices write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def file_bytes(name: str) -> int:
    """Return the size of the files that a package has installed."""
    paths = [Path(str(file.locate())) for file in metadata.files(name) or []]
    return sum(path.stat().st_size for path in paths if path.is_file())


def flood(options: argparse.Namespace, images: list[bytes]) -> dict[str, Any]:
    """Send good and bad requests in random order by 32 clients, and print statuses and memory; exits with 1 for a wrong one."""
    service = Service(
        [sys.executable, "-m", "imgclf.serve", options.model, "--device", "cpu", "--max-bytes", "1000000"]
    )
    made, statuses, wrong = hostile(images), Counter[tuple[str, int]](), list[str]()
    order = random.Random(0).choices(KINDS, k=options.flood)
    memory = list[tuple[int, float]]()
    began = time.perf_counter()

    async def client(left: list[str]) -> None:
        while left:
            kind = left.pop()
            try:
                status = await ask_once(service.port, random.choice(made[kind]))
            except (OSError, asyncio.IncompleteReadError) as error:
                wrong.append(f"{kind}: {error!r}")
                continue
            statuses[kind, status] += 1
            if status not in (EXPECTED.get(kind, 422), 429):
                wrong.append(f"{kind}: {status}")
            if sum(statuses.values()) % (options.flood // 10) == 0:
                memory.append((sum(statuses.values()), service.memory()[1]))

    async def all_clients() -> None:
        left = order[:]
        await asyncio.gather(*(client(left) for _ in range(32)))

    try:
        asyncio.run(all_clients())
    finally:
        seconds, code = time.perf_counter() - began, service.stop()
    print(f"{sum(statuses.values()):,} requests in {seconds:.0f} s; exit code {code}")
    for (kind, status), number in sorted(statuses.items()):
        print(f"  {kind:<10} {status} {number:>7,}")
    print("resident MiB: " + ", ".join(f"{mib:.0f} after {number:,}" for number, mib in memory))
    print(f"wrong answers: {len(wrong)} {wrong[:5]}")
    if wrong or code:
        raise SystemExit(1)
    return {"requests": options.flood, "seconds": seconds, "resident_mib": memory, "wrong": len(wrong)}


def hostile(images: list[bytes]) -> dict[str, list[bytes]]:
    """Return the requests of each kind of `KINDS`."""

    def image(body: bytes, path: str = "/predict", kind: str = "image/jpeg") -> bytes:
        return head(path, kind, len(body)) + body

    some = images[:50]
    return {
        "good": [image(body) for body in some],
        "two": [form_request(one, other[:100]) for one, other in zip(some, reversed(some), strict=True)],
        "truncated": [image(body[: len(body) // 2]) for body in some],
        "empty": [image(b"")],
        "html": [image(b"<!DOCTYPE html><html></html>")],
        "bomb": [image(large_png())],
        "large": [image(bytes(2_000_000))],
        "parameter": [image(some[0], "/predict?top=none")],
        "model": [image(some[0], "/predict?model=none")],
        "type": [image(some[0], kind="text/html")],
        "private": [image(b'{"urls": ["http://127.0.0.1/x.jpg"]}', kind="application/json")],
        "path": [image(some[0], "/nothing")],
    }


def large_png() -> bytes:
    """Return a PNG whose header claims 50,000 x 50,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")


if __name__ == "__main__":
    main()
