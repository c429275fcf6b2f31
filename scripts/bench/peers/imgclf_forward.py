"""Pictures a second of imgclf's engine on a frozen VGG16, from memory: the counterpart of `keras_peer.forward`."""

import json
import sys
import time

from imgclf.allocator import keep_memory

keep_memory()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from imgclf.models.engine import build_engine, choose_engine, run  # noqa: E402
from imgclf.models.network import build_network  # noqa: E402
from imgclf.models.split import split_network  # noqa: E402


def main(job: dict) -> dict:
    """The median of several passes over 128 pictures."""
    network = build_network({"backbone": "vgg16", "head": {"pool": "flatten"}, "freeze": "all"}, 29, 3, job["size"])
    split, scale = split_network(network, 3, job["size"]), torch.full((1, 3, 1, 1), 127.5)
    assert split is not None
    engine = build_engine(choose_engine("auto", torch.device("cpu"), 10**6), split.stem, scale, scale, job["size"])
    images = torch.randint(0, 256, (128, 3, job["size"], job["size"]), dtype=torch.uint8)
    run(engine, images[:32], 32)
    seconds = []
    for _ in range(job["repeats"]):
        began = time.perf_counter()
        run(engine, images, 32)
        seconds.append(time.perf_counter() - began)
    return {"images_per_second": 128 / float(np.median(seconds)), "versions": {"engine": engine.label}}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
