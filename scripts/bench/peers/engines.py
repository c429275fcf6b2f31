"""Images/s of the bare forward pass by each engine of imgclf, and by the one that its rule chooses.

    python engines.py '{"backbone": "vgg16", "image_size": 150, "count": 1024}'

Prints one JSON object. Runs in imgclf's own environment.
"""

import json
import sys
from time import perf_counter
from typing import Any

from imgclf.malloc import tune_malloc

tune_malloc()

import torch  # noqa: E402, malloc is tuned before torch allocates

from imgclf.models.backbone import build_backbone  # noqa: E402
from imgclf.models.engine import BATCH, build_engine, choose_engine, run_padded  # noqa: E402
from imgclf.models.image_model import ImageModel  # noqa: E402
from imgclf.models.openvino_queue import openvino_version  # noqa: E402
from imgclf.preprocess import Preprocess  # noqa: E402


def main(job: dict[str, Any]) -> None:
    """Measure each installed engine on the same random images; the first batches do not count."""
    size, count = job["image_size"], job["count"]
    network = build_backbone(job["backbone"], 3, size).eval().to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    model = ImageModel(network, [], Preprocess(size=size)).eval()
    answer: dict[str, Any] = {"chosen": choose_engine("auto", torch.device("cpu"), job.get("images", count))}
    for name in ("eager", *(["openvino"] if openvino_version() else [])):
        engine = build_engine(name, model)
        run_padded(engine, images[: 2 * BATCH], BATCH)
        began = perf_counter()
        run_padded(engine, images, BATCH)
        answer[name] = count / (perf_counter() - began)
    answer["images_per_second"] = answer[answer["chosen"]]
    print(json.dumps(answer))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
