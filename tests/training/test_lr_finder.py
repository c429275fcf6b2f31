"""find=lr and find=batch_size: their suggestions, tables and errors."""

import math
from pathlib import Path

import pytest

from imgclf.errors import ConfigError, RunError
from imgclf.training import lr_finder as finding
from imgclf.training.lr_finder import find

from support.fabricate import TINY, composed, draw_tree  # isort: skip
from support.run_files import read_rows  # isort: skip


def numbers(path: Path) -> list[dict[str, float]]:
    return [{key: float(value) for key, value in row.items()} for row in read_rows(path)]


def test_suggested_learning_rate_trains_and_a_hundredth_of_it_hardly_does(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imgclf.training.run import train

    settings = (*TINY, f"data_dir='{colours}'", "optimizer.name=sgd")
    find(composed(*settings, "find=lr"), tmp_path / "search")
    printed = capsys.readouterr().out
    suggestion = next(line for line in printed.splitlines() if line.startswith("optimizer.lr="))
    rate = float(suggestion.partition("=")[2].split()[0])
    rows = numbers(tmp_path / "search" / "lr_find.csv")
    assert (tmp_path / "search" / "lr_find.png").stat().st_size > 5000
    assert rows[0]["lr"] == pytest.approx(1e-6) and [row["lr"] for row in rows] == sorted(row["lr"] for row in rows)
    assert not (tmp_path / "search" / "checkpoints").exists() and not (tmp_path / "search" / "config.yaml").exists()
    losses = []
    for number, chosen in enumerate((rate, rate / 100)):
        folder = tmp_path / f"run{number}"
        train(composed(*settings, f"optimizer.lr={chosen}", "trainer.max_epochs=6"), folder, [])
        losses.append(float(read_rows(folder / "history.csv")[-1]["train_loss"]))
    assert losses[0] < 0.8 * losses[1]


def test_steepest_descent_of_a_logistic_loss_is_at_its_centre() -> None:
    """A loss that falls by a logistic curve around 1e-3 and blows up at 0.3."""
    rates = [10 ** (-6 + number / 20) for number in range(120)]
    smooth = [2 - 1.5 / (1 + math.exp(-4 * (math.log10(rate) + 3))) + (5 if rate > 0.3 else 0) for rate in rates]
    assert finding._steepest(rates, smooth) == pytest.approx(1e-3, rel=0.3)
    with pytest.raises(RunError, match="the loss never fell"):
        finding._steepest(rates, [2 + rate for rate in rates])
    with pytest.raises(RunError, match="the loss never fell"):
        finding._steepest([], [])


def test_batch_sizes_double_up_to_the_data_set_and_the_smallest_fast_one_is_suggested(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find(composed(*TINY, f"data_dir='{colours}'", "find=batch_size"), tmp_path)
    rows = numbers(tmp_path / "batch_size.csv")
    assert [row["batch_size"] for row in rows] == [8, 16, 32], "36 training images"
    fastest = max(row["images_per_second"] for row in rows)
    chosen = int(capsys.readouterr().out.partition("dataset.batch_size=")[2].split()[0])
    assert chosen == next(row["batch_size"] for row in rows if row["images_per_second"] >= 0.95 * fastest)
    assert all(0.05 < row["gigabytes"] < 20 for row in rows) and (tmp_path / "batch_size.png").stat().st_size > 5000


def test_batch_size_search_stops_before_memory_runs_out(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = iter([1.0, 2.0, 4.0, 8.0])
    monkeypatch.setattr(finding, "_gigabytes", lambda device: next(used))
    monkeypatch.setattr(finding, "free_memory", lambda: 2.4e9)  # the next size would need 2 GB more, above 0.8 of it
    find(composed(*TINY, f"data_dir='{colours}'", "find=batch_size"), tmp_path)
    assert [row["batch_size"] for row in numbers(tmp_path / "batch_size.csv")] == [8, 16]


def test_unknown_search_and_too_few_images_are_refused(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of lr, batch_size"):
        find(composed(*TINY, f"data_dir='{colours}'", "find=luck"), tmp_path)
    few = draw_tree(tmp_path / "few", {"train": 2, "valid": 1, "test": 1})
    with pytest.raises(RunError, match="6 training images are too few"):
        find(composed(*TINY, f"data_dir='{few}'", "find=batch_size"), tmp_path / "out")
