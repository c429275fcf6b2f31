"""report.html with any number of classes, without a run: the page's data, fabricated."""

import numpy as np

from imgclf.evaluation.calibration import accuracy_interval
from imgclf.evaluation.classification import metrics_from_confusion, per_class
from imgclf.report.page import data_uri, results_page
from imgclf.report.tables import score_rows

from support.browser import NASTY  # isort: skip


def class_names(count: int) -> list[str]:
    """Return names as the five data sets have them: letters, cards, sports; one is markup, one is a single long word."""
    if count == 3:
        return ["paper", "rock", "scissors"]
    if count == 53:
        ranks = ("ace", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "jack", "queen", "king")
        return sorted(
            ["joker", *(f"{rank} of {suit}" for suit in ("clubs", "diamonds", "hearts", "spades") for rank in ranks)]
        )
    known = [
        "archery",
        "baseball",
        "bowling",
        "cheerleading",
        "wheelchair basketball",
        "ultimatefrisbeechampionship",
        NASTY,
    ]
    return [known[k] if k < len(known) else f"{known[k % 5]} {k}" for k in range(count)]


def page_of(count: int, **changes: object) -> str:
    """Return the page of a run with `count` classes that nobody has trained."""
    generator, names = np.random.default_rng(count), class_names(count)
    matrix = np.diag(generator.integers(3, 12, count)) + (generator.random((count, count)) < 2.2 / count)
    cells = [(row, column, int(matrix[row, column])) for row, column in np.argwhere(matrix).tolist()]
    noise = generator.integers(0, 255, (8, 64, 64, 3)).astype(np.uint8)
    sources = [data_uri(np.full_like(image, image.mean(axis=(0, 1))) // 2 + image // 8, 64) for image in noise]

    def image(number: int, row: int, column: int) -> dict[str, object]:
        others = [column, *(k for k in range(min(count, 5)) if k != column)][:5]
        top = [[other, 0.983 if other == column else 0.004] for other in others]
        file = f"test/{names[row][:30].replace('/', ' ')}/{number:04d}.jpg"
        shown = {"true": row, "predicted": column, "probability": 0.983, "top": top}
        return {"src": sources[number % 8], "file": file, **shown}

    images = [image(number, row, column) for number, (row, column, _) in enumerate(cells[:300])]
    wrong = [number for number, one in enumerate(images) if one["true"] != one["predicted"]]
    right = [number for number, one in enumerate(images) if one["true"] == one["predicted"]]
    correct, total = int(np.trace(matrix)), int(matrix.sum())
    scores = metrics_from_confusion(matrix, 0.4251, 0.953) | {"ece": 0.0672}
    interval = accuracy_interval(correct, total)
    samples = [{"src": sources[k % 8], "caption": name} for k, name in enumerate(names[:120])]
    bins = [
        {"low": k / 10, "high": (k + 1) / 10, "confidence": (k + 0.5) / 10, "accuracy": k / 11, "count": 5}
        for k in range(3, 10)
    ]
    averages = [
        [name, *cells, f"{row['support']:,}"] for name, row, cells in list(score_rows(names, matrix, 3))[count:]
    ]
    values = [0.4, 0.7, 0.85, 0.84]
    data = {
        "title": "sports: mobilenetv2_100",
        "description": f"mobilenetv2_100 on 224 × 224 pixels, {count} classes, 4 epochs",
        "classes": names,
        "split": "test",
        "splits": {name: {**scores, "interval": interval} for name in ("train", "val", "test")},
        "notes": ["val and test: measured with the weights of epoch 3 of 4, the best by val_accuracy."],
        "best_epoch": 3,
        "listed": "predictions_test.csv",
        "history": [
            {"epoch": k + 1, "train_loss": 1 - v, "train_accuracy": v + 0.1, "val_loss": 1.05 - v, "val_accuracy": v}
            for k, v in enumerate(values)
        ],
        "matrix": cells,
        "confused": sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])[:15],
        "per_class": per_class(matrix),
        "averages": averages,
        "counts": {"train": [7624] * count, "val": [75] * count, "test": matrix.sum(axis=1).tolist()},
        "images": images,
        "tiny_pixels": False,
        "errors": wrong[:24],
        "least_confident": right[:24],
        "saliency": [{**images[k], "overlay": sources[0]} for k in (*wrong[:6], *right[:6])],
        "reliability": bins,
        "reliability_calibrated": None,
        "network": [
            ["part", "kind", "output", "trainable", "frozen"],
            *([f"blocks.{k}", "2 x InvertedResidual", "24 x 112 x 112", "473,920", "1,004,480"] for k in range(9)),
            ["all", "2,277,199 parameters", "", "2,243,087", "34,112"],
        ],
        "data": [
            ["data set", "sports"],
            ["folder", "/home/someone/data/" + "sports/" * 12],
            ["augmentation", "rotation_degrees 20"],
        ],
        "samples": samples,
        "augmented": samples,
        "environment": [["command", "imgclf train " + "dataset=sports " * 8], ["versions", "torch 2.9.0, timm 1.0.0"]],
    }
    return results_page({**data, **changes})
