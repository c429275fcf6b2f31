"""EpochMetrics: batches add up, totals are restored exactly, and two processes count as one."""

import json
import math
import socket
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imgclf.evaluation import EpochMetrics
from imgclf.evaluation.evaluate import metrics_from_probabilities


def batches(count: int = 70, num_classes: int = 9, size: int = 16) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(loss, logits, targets) of each batch."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, num_classes, generator=generator)
    targets = torch.randint(num_classes, (count,), generator=generator)
    logits[torch.arange(count), targets] += 1
    parts = zip(logits.split(size), targets.split(size), strict=True)
    return [(functional.cross_entropy(part, true), part, true) for part, true in parts]


def accumulate(rows: list[tuple[Tensor, Tensor, Tensor]], num_classes: int = 9) -> EpochMetrics:
    metrics = EpochMetrics(num_classes)
    for row in rows:
        metrics.update(*row)
    return metrics


def whole(rows: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """The metrics of all rows at once."""
    logits, targets = (torch.cat(column) for column in list(zip(*rows, strict=True))[1:])
    loss = functional.cross_entropy(logits, targets).item()
    return metrics_from_probabilities(logits.softmax(dim=1).numpy(), targets.numpy(), loss)[0]


def test_batches_add_up_to_the_metrics_of_all_samples() -> None:
    metrics = accumulate(batches())
    expected = whole(batches())
    assert metrics.compute() == pytest.approx(expected)
    assert metrics.compute_and_reset() == pytest.approx(expected)
    assert int(metrics.confusion.sum()) == 0, "the next epoch begins at zero"


def test_a_loss_that_is_nan_stays_visible() -> None:
    (_, logits, targets), *rest = batches()
    metrics = accumulate([(torch.tensor(math.nan), logits, targets), *rest])
    assert math.isnan(metrics.compute()["loss"]) and metrics.compute()["count"] == 70


def test_logits_that_are_nan_are_no_hits() -> None:
    metrics = EpochMetrics(8)
    metrics.update(torch.tensor(math.nan), torch.full((4, 8), math.nan), torch.tensor([1, 2, 3, 4]))
    assert metrics.compute()["top5"] == 0


def test_equal_logits_rank_by_class() -> None:
    metrics = EpochMetrics(8)
    metrics.update(torch.tensor(2.0), torch.zeros(8, 8), torch.arange(8))
    values = metrics.compute()
    assert (values["correct"], values["top5"]) == (1, 5 / 8)


def test_restored_totals_continue_to_the_same_bits() -> None:
    rows = batches()
    expected = accumulate(rows)
    saved = json.loads(json.dumps(accumulate(rows[:2]).totals()))
    resumed = EpochMetrics(9)
    resumed.restore(saved)
    assert resumed.is_reduced and resumed.totals() == saved
    resumed.keep_on_rank_zero(True)
    for row in rows[2:]:
        resumed.update(*row)
    assert resumed.totals() == expected.totals() and resumed.compute() == expected.compute()


def test_loss_does_not_depend_on_the_order_of_batches() -> None:
    """A resumed epoch of several processes adds the same losses in another order."""
    rows = batches(count=4000, size=16)
    orders = [rows, rows[::-1], rows[::2] + rows[1::2]]
    assert len({accumulate(order).compute()["loss"] for order in orders}) == 1
    assert len({sum((loss * 16 for loss, *_ in order), torch.tensor(0.0)).item() for order in orders}) > 1, (
        "as in float32"
    )


def test_other_ranks_begin_at_zero_and_totals_of_others_are_refused() -> None:
    saved = accumulate(batches()).totals()
    resumed = EpochMetrics(9)
    resumed.restore(saved)
    resumed.keep_on_rank_zero(False)
    assert resumed.totals() == EpochMetrics(9).totals() and not resumed.is_reduced
    with pytest.raises(ValueError, match=r"shape \(9, 9\), expected \(3, 3\)"):
        EpochMetrics(3).restore(saved)
    with pytest.raises(KeyError):
        EpochMetrics(9).restore({})


def test_metrics_add_nothing_to_a_modules_state() -> None:
    module = torch.nn.Module()
    module.metrics = accumulate(batches())
    assert not module.state_dict() and not list(module.buffers()) and not list(module.parameters())


def _process(rank: int, port: int, connection: Connection) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    halves = [(logits[rank::2], targets[rank::2]) for _, logits, targets in batches()]
    metrics = accumulate([(functional.cross_entropy(*half), *half) for half in halves])
    within = metrics.totals()
    local = int(metrics.confusion.sum())
    metrics.reduce()
    after, twice = metrics.totals(), metrics.totals()
    torch.distributed.destroy_process_group()
    alone = metrics.compute(), metrics.compute()  # the other process has left
    connection.send((within, local, after, twice, alone))


@pytest.mark.exhaustive
def test_two_processes_count_each_sample_once() -> None:
    context = get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [context.Process(target=_process, args=(rank, port, pipes[rank][1])) for rank in range(2)]
    for process in processes:
        process.start()
    received: list[tuple[Any, ...]] = [ours.recv() for ours, _ in pipes]
    for process in processes:
        process.join()
    expected = accumulate(batches())
    for within, local, after, twice, alone in received:
        assert local == 35, "totals leave each process its own sums"
        assert within == after == twice, "reducing twice doesn't count twice"
        assert within["confusion"] == expected.totals()["confusion"]
        np.testing.assert_allclose(within["running"], expected.totals()["running"], rtol=1e-6)
        assert alone[0] == alone[1] == pytest.approx(expected.compute())
