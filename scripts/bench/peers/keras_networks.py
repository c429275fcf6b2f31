"""imgclf's networks, as a Keras user writes them. `model` is the `model` group of an imgclf experiment."""

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import applications, layers

__all__ = ["augmentation", "build", "count_parameters", "optimizer"]

BACKBONES = {
    "mobilenetv1_100": applications.MobileNet,
    "mobilenetv2_100": applications.MobileNetV2,
    "tf_mobilenetv3_small_100": lambda **kw: applications.MobileNetV3Small(include_preprocessing=False, **kw),
    "vgg16": applications.VGG16,
}


def build(model: Mapping[str, Any], classes: int, size: int) -> keras.Model:
    """Return a model with random weights and its own rescaling: pixels [B, S, S, 3] from 0 to 255 -> logits [B, K]."""
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = _small_cnn(x, **model["backbone_kwargs"]) if model["backbone"] == "small_cnn" else _backbone(x, model, size)
    return keras.Model(inputs, _head(x, classes, **model["head"]))


def count_parameters(model: keras.Model) -> tuple[int, int]:
    """Return (trainable, total), BatchNorm's statistics included."""
    return sum(map(_size, model.trainable_weights)), sum(_size(w) for w in model.weights if "seed" not in w.path)


def optimizer(options: Mapping[str, Any]) -> keras.optimizers.Optimizer:
    """Return Adam or RMSprop with Keras's defaults, which the experiments use."""
    return {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[options["name"]](options["lr"])


def augmentation(options: Mapping[str, Any]) -> keras.Sequential:
    """Return Keras's random layers for the amounts in imgclf's `dataset.augment`."""
    turn, shift, zoom = (options.get(key, 0.0) for key in ("rotation_degrees", "shift", "zoom"))
    shear, fill = options.get("shear_degrees", 0.0) / 90, options.get("fill", "nearest")
    steps = [layers.RandomFlip("horizontal")] if options.get("horizontal_flip") else []
    if turn:
        steps.append(layers.RandomRotation(turn / 360, fill_mode=fill))
    if shift:
        steps.append(layers.RandomTranslation(shift, shift, fill_mode=fill))
    if shear:
        steps.append(layers.RandomShear(shear, shear, fill_mode=fill))
    if zoom:
        steps.append(layers.RandomZoom((-zoom, zoom), (-zoom, zoom), fill_mode=fill))
    return keras.Sequential(steps)


def _size(weight: Any) -> int:
    return math.prod(weight.shape)


def _backbone(x: Any, model: Mapping[str, Any], size: int) -> Any:
    base = BACKBONES[model["backbone"]](input_shape=(size, size, 3), include_top=False, weights=None)
    freeze = model["freeze"]
    if freeze == "all":
        base.trainable = False
        return base(x, training=False)
    if freeze != "none":  # a number: all but the last so many layers that own weights
        for layer in [layer for layer in base.layers if layer.weights][:-freeze]:
            layer.trainable = False
    return base(x)


def _small_cnn(x: Any, layers: list[Any], padding: str, batch_norm: bool, **_: Any) -> Any:
    for width in layers:
        if width == "pool":
            x = keras.layers.MaxPooling2D()(x)
            continue
        x = keras.layers.Conv2D(width, 3, padding=padding, activation="relu")(x)
        if batch_norm:
            x = keras.layers.BatchNormalization()(x)
    return x


def _head(
    x: Any, classes: int, hidden: list[int], pool: str, dropout: float, batch_norm: bool, l2: float, **_: Any
) -> Any:
    x = layers.Flatten()(x) if pool == "flatten" else layers.GlobalAveragePooling2D()(x)
    for units in hidden:
        x = layers.Dense(units, activation="relu", kernel_regularizer=keras.regularizers.L2(l2) if l2 else None)(x)
        if batch_norm:
            x = layers.BatchNormalization()(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    return layers.Dense(classes)(x)
