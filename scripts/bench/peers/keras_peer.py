"""Keras on TensorFlow, as in its guides: `image_dataset_from_directory`, prefetch, `fit`; no `cache()`.

One argument, a JSON object; `task` is fit, predict_array (images/s of `predict` on an array), or predict_folder.
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow leaves oneDNN off on processors that it does not know as fast; with it small networks are four times as fast
# there, and a comparison without it would favour imgclf.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf
from keras_networks import augmentation, build, count_parameters, optimizer
from report import check_parameters, report

PACKAGES = ("tensorflow_cpu", "keras", "numpy")


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch, its validation included."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(perf_counter() - self._began)


def main(job: dict[str, Any]) -> None:
    """Do the task and print the answer."""
    keras.utils.set_random_seed(0)
    {"fit": fit, "predict_array": predict_array, "predict_folder": predict_folder}[job["task"]](job)


def fit(job: dict[str, Any]) -> None:
    """Train, test and save."""
    began = perf_counter()
    train, val, test, classes = from_csv(job) if job["csv"] else from_folders(job)
    steps, val_steps = job["steps"], job["val_steps"]
    if job["augment"]:
        change = augmentation(job["augment"])
        train = train.map(lambda x, y: (change(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
    train, val = (part.repeat() if many else part for part, many in ((train, steps), (val, val_steps)))
    model = build(job["model"], classes, job["image_size"])
    parameters = check_parameters(job["parameters"], count_parameters(model))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(job["optimizer"]), loss, metrics=["accuracy"], jit_compile="auto")
    train, val = (part.prefetch(tf.data.AUTOTUNE) for part in (train, val))
    limits = {"epochs": job["epochs"], "steps_per_epoch": steps, "validation_steps": val_steps}
    clock, ready = Clock(), perf_counter()
    model.fit(train, validation_data=val, callbacks=[clock], verbose=0, **limits)
    fitted = perf_counter()
    if test is not None:
        model.evaluate(test, verbose=0)
    model.save(Path(job["out"]) / "model.keras")
    more = {"parameters": parameters, "reading_seconds": ready - began}
    report(PACKAGES, fitted - ready, clock.seconds, job["images"], **more)


def from_folders(job: dict[str, Any]) -> tuple[Any, Any, Any, int]:
    """Return the splits below `root`, resized bilinearly by TensorFlow as it decodes them, and the number of classes."""
    shape = {"image_size": (job["image_size"],) * 2, "batch_size": job["batch_size"]}

    def split(name: str) -> Any:
        order = {"shuffle": name == "train", "seed": 0}
        folder = Path(job["root"]) / name
        return keras.utils.image_dataset_from_directory(folder, verbose=False, **order, **shape)

    train = split("train")
    test = split("test") if (Path(job["root"]) / "test").is_dir() else None
    return train, split("val"), test, len(train.class_names)


def from_csv(job: dict[str, Any]) -> tuple[Any, Any, Any, int]:
    """Return sign-MNIST, one row per image; J is missing from the labels. The test file is cut 60 : 40 into val and test."""

    def read(name: str) -> tuple[Any, Any]:
        rows = np.loadtxt(Path(job["root"]) / name, dtype=np.uint8, delimiter=",", skiprows=1)
        labels = rows[:, 0].astype(np.int64)
        return rows[:, 1:].reshape(-1, 28, 28, 1), labels - (labels > 9)

    def batches(images: Any, labels: Any, shuffle: bool = False) -> Any:
        data = tf.data.Dataset.from_tensor_slices((images, labels))
        data = data.shuffle(len(images)) if shuffle else data
        return data.batch(job["batch_size"]).map(enlarge, num_parallel_calls=tf.data.AUTOTUNE)

    def enlarge(images: Any, labels: Any) -> tuple[Any, Any]:
        return tf.image.grayscale_to_rgb(tf.image.resize(images, (job["image_size"],) * 2)), labels

    train, (images, labels) = read("sign_mnist_train.csv"), read("sign_mnist_test.csv")
    cut = int(0.6 * len(images))
    return batches(*train, shuffle=True), batches(images[:cut], labels[:cut]), batches(images[cut:], labels[cut:]), 24


def predict_array(job: dict[str, Any]) -> None:
    """Report images/s of `predict` of the frozen part on one array; the first call, which compiles, does not count."""
    size, count = job["image_size"], job["count"]
    model = build({**job["model"], "head": {**job["model"]["head"], "hidden": []}}, 2, size)
    model = keras.Model(model.input, model.layers[-2].output)  # without the dense layer
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8).astype(np.float32)
    model.predict(images[:64], batch_size=32, verbose=0)
    began = perf_counter()
    model.predict(images, batch_size=32, verbose=0)
    seconds = perf_counter() - began
    report(PACKAGES, seconds, [seconds], count)


def predict_folder(job: dict[str, Any]) -> None:
    """Predict the images of a folder; jobs.py takes the difference between two folders."""
    size = job["image_size"]
    model = build(job["model"], job["classes"], size)
    shape = {"image_size": (size, size), "batch_size": 32}
    data = keras.utils.image_dataset_from_directory(job["root"], labels=None, shuffle=False, verbose=False, **shape)
    began = perf_counter()
    logits = model.predict(data.prefetch(tf.data.AUTOTUNE), verbose=0)
    seconds = perf_counter() - began
    report(PACKAGES, seconds, [seconds], len(logits))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
