"""Limits of a service: batches across requests, a bounded queue, time-outs, slow and idle connections, the stop."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.service import JPEG, Answer, Asked, GatedModel, form, running

from imgclf import serve
from imgclf.errors import ConfigError
from imgclf.serving import server
from imgclf.serving.models import ServedModel
from imgclf.serving.settings import Refusal
from imgclf.serving.work import Admission, Batcher, WorkerThreads


@contextmanager
def crowd(asked: Asked, path: str, body: bytes, count: int) -> Iterator[list["Future[Answer]"]]:
    """Send `count` requests at the same time; the answers come when the service gives them."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(asked.ask, path, body, JPEG) for _ in range(count)]


def wait_until(condition: object, seconds: float = 10) -> None:
    """Wait until a function returns true; fails after some seconds."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_requests_that_gather_while_a_batch_is_computed_are_one_batch(tiny_model: ServedModel, red: bytes) -> None:
    model = GatedModel(tiny_model)
    with running([model], batch=8, queue=20) as asked:
        assert asked.service is not None
        with crowd(asked, "/predict?top=1", red, 20) as answers:
            wait_until(lambda: asked.service.admission.taken == 20)
            batcher = asked.service._batchers[model.name]
            wait_until(lambda: sum(model.batches) + batcher._tasks.qsize() == 20)
            model.gate.set()
        assert {answer.result().status for answer in answers} == {200}
        assert {answer.result().json["predictions"][0]["predicted"] for answer in answers} == {"red"}
        assert sum(model.batches) == 20 and max(model.batches) == 8 and len(model.batches) <= 4
        assert asked.service.admission.taken == asked.service.admission.held == 0
        text = asked.ask("/metrics").body.decode()
        assert f'imgclf_batch_images_sum{{model="colours"}} {float(20)}' in text


def test_idle_network_waits_for_no_batch(tiny_model: ServedModel, red: bytes) -> None:
    model = GatedModel(tiny_model)
    model.gate.set()
    with running([model], batch=64) as asked:
        for _ in range(5):
            assert asked.ask("/predict", red, JPEG).status == 200
    assert model.batches == [1] * 5


def test_full_queue_gets_429_before_the_body_is_read(tiny_model: ServedModel, red: bytes) -> None:
    model = GatedModel(tiny_model)
    with running([model], batch=2, queue=4) as asked:
        with crowd(asked, "/predict", red, 4) as answers:
            wait_until(lambda: asked.service is not None and asked.service.admission.taken == 4)
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n"
            assert asked.ask_raw(head).startswith(b"HTTP/1.1 429 ")
            refused = asked.ask("/predict", red, JPEG)
            assert refused.status == 429 and refused.headers["retry-after"] == "1" and "4 of 4 places" in refused.error
            assert asked.ask("/health").status == 200
            model.gate.set()
        assert [answer.result().status for answer in answers] == [200] * 4
        body, headers = form(*[("images", f"{number}.png", red) for number in range(5)])
        assert asked.ask("/predict", body, headers).status == 429
        assert asked.ask("/predict", red, JPEG).status == 200


def test_bodies_of_all_requests_are_bounded() -> None:
    admission = Admission(10, 1000)
    with admission.ticket() as first:
        first.hold(900)
        with pytest.raises(Refusal) as caught, admission.ticket() as second:
            second.hold(101)
        assert caught.value.status == 429 and (admission.taken, admission.held) == (1, 900)
    assert (admission.taken, admission.held) == (0, 0)


def test_slow_answer_gets_503_and_its_images_are_dropped(tiny_model: ServedModel, red: bytes) -> None:
    model = GatedModel(tiny_model)
    with running([model], batch=1, timeout_seconds=0.3) as asked:
        with crowd(asked, "/predict", red, 3) as answers:
            pass
        assert {answer.result().status for answer in answers} == {503}
        assert "no answer within 0.3 seconds" in answers[0].result().error
        model.gate.set()
        wait_until(lambda: asked.service is not None and asked.service._batchers[model.name]._tasks.empty())
        assert asked.ask("/predict", red, JPEG).status == 200
    assert model.batches == [1, 1]  # the first, and the last: nothing is computed for those who have gone


def test_error_of_the_service_is_500_in_one_line_and_it_lives(
    tiny_model: ServedModel, red: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(GatedModel):
        def predict(self, images: object) -> object:
            if not self.gate.is_set():
                raise RuntimeError("secret detail")
            return ServedModel.predict(self, images)  # type: ignore[arg-type]

    model = Broken(tiny_model)
    with running([model]) as asked:
        answer = asked.ask("/predict", red, JPEG)
        assert answer.status == 500 and "secret" not in answer.error and "secret detail" in caplog.text
        model.gate.set()
        assert asked.ask("/predict", red, JPEG).status == 200


def test_slow_body_gets_408(tiny_model: ServedModel) -> None:
    with running([tiny_model], timeout_seconds=0.3) as asked:
        head = (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\nabc"
        )
        with socket.create_connection(("127.0.0.1", asked.port), timeout=10) as slow:
            slow.sendall(head)
            assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert asked.service is not None and asked.service.admission.taken == 0


@pytest.mark.trust(
    "connections that send the head of a request byte by byte, or never read", "others wait, or it stays open"
)
def test_slow_head_is_cut_off(tiny_model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.4)
    with running([tiny_model]) as asked:
        slow = [socket.create_connection(("127.0.0.1", asked.port), timeout=10) for _ in range(20)]
        silent = socket.create_connection(("127.0.0.1", asked.port), timeout=10)
        again = socket.create_connection(("127.0.0.1", asked.port), timeout=10)
        again.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert again.recv(65536).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        ended = False
        while not ended and time.monotonic() < began + 5:
            for connection in (*slow, again):
                try:
                    connection.sendall(b"G")
                except OSError:
                    ended = True
            assert asked.ask("/health").status == 200
            time.sleep(0.05)
        assert ended and time.monotonic() - began < 3
        for connection in (*slow, silent, again):
            with connection, suppress(ConnectionError):
                while connection.recv(
                    65536
                ):  # the rest of an answer, then the end; raises TimeoutError if it stays open
                    pass


def test_too_many_connections_get_503(tiny_model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 5)
    with running([tiny_model]) as asked:
        many = [socket.create_connection(("127.0.0.1", asked.port), timeout=10) for _ in range(5)]
        time.sleep(0.1)
        assert asked.ask("/health").status == 503
        for connection in many:
            connection.close()
        wait_until(lambda: asked.ask("/health").status == 200)


def test_client_that_leaves_frees_its_place(tiny_model: ServedModel) -> None:
    with running([tiny_model]) as asked:
        for _ in range(10):
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"
            with socket.create_connection(("127.0.0.1", asked.port), timeout=10) as connection:
                connection.sendall(head)
        wait_until(lambda: asked.service is not None and asked.service.admission.taken == 0)
        text = asked.ask("/metrics").body.decode()
        assert 'status="5' not in text


def test_threads_make_calls_in_order_and_end() -> None:
    done: list[int] = []
    workers = WorkerThreads(1)
    futures = [workers.submit(lambda number=number: done.append(number)) for number in range(5)]
    workers.stop()
    assert [future.result(5) for future in futures] == [None] * 5 and done == [0, 1, 2, 3, 4]
    batcher: Batcher[int, int] = Batcher(lambda items: [2 * item for item in items], 3, threading.Lock(), done.append)
    assert [future.result(5) for future in [batcher.submit(number) for number in range(7)]] == [0, 2, 4, 6, 8, 10, 12]
    batcher.stop()
    batcher._thread.join(5)
    assert not batcher._thread.is_alive() and sum(done[5:]) == 7 and max(done[5:]) <= 3


def test_taken_port_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: can't be served at .* pass another --port"):
            server.bind("127.0.0.1", port)
        assert serve.main(["model", "--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"imgclf: 127.0.0.1:{port}: can't be served at")
    with pytest.raises(ConfigError, match="expected an address of this machine"):
        server.bind("no.such.host.invalid", 0)


@pytest.mark.parametrize("words", [[], ["x", "--port", "70000"], ["x", "--queue", "0"], ["x", "--threshold", "2"]])
def test_wrong_option_exits_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        serve.main(words)
    assert caught.value.code == 2


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    assert serve.main(["model"]) == 2
    assert (
        'the package uvicorn isn\'t installed; install it with `pip install -e ".[serve]"`' in capsys.readouterr().err
    )


class Command:
    """`imgclf serve` in a process of its own."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "imgclf.serve", *words, "--port", "0", "--device", "cpu"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline() for _ in range(4)]
        self.asked = Asked(int(self.lines[1].rpartition(":")[2].rstrip("/\n")))

    def resident(self) -> float:
        """Return the memory of the process in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


MIXED = (
    "good",
    "good",
    "good",
    "form",
    "truncated",
    "empty",
    "html",
    "large",
    "parameter",
    "model",
    "type",
    "url",
    "path",
)


def mixed(asked: Asked, kind: str, red: bytes) -> int:
    """Send a good or a bad request; return its status, which must be the expected one or 429."""
    url = {"Content-Type": "application/json"}
    body, headers = form(("images", "a.png", red), ("images", "b.png", red[:50]))
    requests: dict[str, tuple[int, str, bytes, dict[str, str]]] = {
        "good": (200, "/predict", red, JPEG),
        "form": (200, "/predict", body, headers),
        "truncated": (422, "/predict", red[:200], JPEG),
        "empty": (422, "/predict", b"", JPEG),
        "html": (422, "/predict", b"<html></html>", JPEG),
        "large": (413, "/predict", bytes(2_000_000), JPEG),
        "parameter": (400, "/predict?top=none", red, JPEG),
        "model": (404, "/predict?model=none", red, JPEG),
        "type": (415, "/predict", red, {"Content-Type": "text/html"}),
        "url": (422, "/predict", b'{"urls": ["http://127.0.0.1/x"]}', url),
        "path": (404, "/none", red, JPEG),
    }
    status, *request = requests[kind]
    answer = asked.ask(*request)
    assert answer.status in (status, 429), (kind, answer)
    return answer.status


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals and /proc")
def test_command_survives_a_flood_and_answers_what_it_took_before_it_stops(tiny_run: Path, red: bytes) -> None:
    command = Command(f"x={tiny_run}", "--max-bytes", "1000000", "--queue", "16")
    try:
        assert command.lines[0] == "models     x (3 classes)\n"
        with ThreadPoolExecutor(8) as pool:
            kinds = [MIXED[number % len(MIXED)] for number in range(260)]
            list(pool.map(lambda kind: mixed(command.asked, kind, red), kinds[:130]))
            before = command.resident()
            statuses = list(pool.map(lambda kind: mixed(command.asked, kind, red), kinds))
            assert statuses.count(200) > 50 and max(statuses) < 500
            assert command.resident() - before < 20
        # The head and a part of the body are there when the signal comes; the rest follows.
        head = (
            b"POST /predict?top=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", command.asked.port), timeout=10) as taken:
            taken.sendall(head % len(red) + red[:100])
            time.sleep(0.2)
            command.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(ConnectionError):
                command.asked.ask("/health")
            taken.sendall(red[100:])
            answer = b""
            while b'"predicted"' not in answer and (part := taken.recv(65536)):  # head and body may come apart
                answer += part
            assert b'"predicted": "red"' in answer
        _, errors = command.process.communicate(timeout=20)
        assert (command.process.returncode, errors) == (0, "imgclf: stopped by SIGTERM\n")
    finally:
        command.process.kill()
        command.process.communicate()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")
def test_ctrl_c_stops_with_130(tiny_run: Path, tmp_path: Path) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    child = os.fork()  # saves the seconds of importing torch
    if child == 0:
        code = 70
        try:
            for number, path in ((1, output), (2, errors)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            code = serve.main([str(tiny_run), "--port", "0", "--device", "cpu"])
        finally:
            os._exit(code)
    wait_until(lambda: output.exists() and "Ctrl-C" in output.read_text(), 20)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert errors.read_text() == "imgclf: interrupted by SIGINT\n"
