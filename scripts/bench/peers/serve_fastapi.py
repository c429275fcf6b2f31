"""A FastAPI service around a PyTorch network, as tutorials write it: one image a request, computed where it is received.

python serve_fastapi.py '{"port": 8001, "backbone": "mobilenetv2_100", "classes": 53, "size": 224}'
"""

import io
import json
import sys

import timm
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision import transforms

job = json.loads(sys.argv[1])
model = timm.create_model(job["backbone"], pretrained=False, num_classes=job["classes"]).eval()
transform = transforms.Compose(
    [
        transforms.Resize((job["size"], job["size"])),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
app = FastAPI()


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer that the service runs."""
    return {"status": "ok"}


@app.post("/predict")
async def predict(images: UploadFile) -> dict[str, object]:
    """Return the five most probable classes of the uploaded image."""
    image = Image.open(io.BytesIO(await images.read())).convert("RGB")
    with torch.inference_mode():
        probabilities = model(transform(image)[None]).softmax(dim=1)[0]
    values, indices = probabilities.topk(5)
    return {"top": [{"class": int(i), "probability": float(v)} for i, v in zip(indices, values, strict=True)]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=job["port"], log_level="warning", access_log=False)
