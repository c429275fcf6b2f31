"""LitServe around imgclf's own predictor and decoder, so that the two differ in the HTTP server and the batching alone.

python serve_litserve.py '{"port": 8001, "model": "best.ckpt", "batch": 16, "wait_seconds": 0.0}'
"""

import json
import sys
from typing import Any

import litserve
from fastapi import Request

from imgclf.malloc import tune_malloc


class Classifier(litserve.LitAPI):
    """Decodes in the worker, as LitServe's examples do."""

    def __init__(self, model: str, batch: int, wait_seconds: float) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=wait_seconds)
        self.path = model

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        import imgclf

        tune_malloc()
        self.predictor = imgclf.load(self.path, "cpu")
        self.predictor.predict_pixels([], [])

    def decode_request(self, request: Request) -> Any:
        """Return the pixels of the uploaded file."""
        from imgclf.images import read_image

        return read_image(request["images"].file.read(), self.predictor.model.preprocess, "image")

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Return the images of a batch as they are."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return the predictions of a batch as they are."""
        return output

    def predict(self, pixels: Any) -> Any:
        """Return the predictions for a batch, or for one image where batches are off."""
        from imgclf.inference.inputs import InputImage

        images = pixels if isinstance(pixels, list) else [pixels]
        predictions = self.predictor.predict_pixels([InputImage("image", None)] * len(images), images)
        return predictions if isinstance(pixels, list) else predictions[0]

    def encode_response(self, prediction: Any) -> dict[str, object]:
        """Return the five most probable classes."""
        return {"top": [{"class": name, "probability": value} for name, value in prediction.top]}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    api = Classifier(job["model"], job["batch"], job["wait_seconds"])
    server = litserve.LitServer(api, accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=job["port"], log_level="warning", generate_client_file=False, access_log=False)
