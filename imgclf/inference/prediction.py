"""The prediction for one image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgclf.errors import ImageError
from imgclf.inference.inputs import InputImage

__all__ = ["Prediction"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for an image: `label`, `probability` and the `top_count` classes in `top`.

    `probabilities` float32 [K], and the image's `pixels` uint8 [S, S, C] as the network saw them; NaN, None and the
    `error` for an image that cannot be read. An image for which the network's outputs aren't finite has NaN, its pixels
    and an error. `classes` are the names of the K classes.
    """

    image: InputImage
    probabilities: NDArray[np.float32]
    pixels: NDArray[np.uint8] | None
    error: ImageError | None
    classes: tuple[str, ...]
    top_count: int = 5

    @property
    def label(self) -> str:
        """The predicted class; raises the `error` of an image that cannot be read."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """The probability of the predicted class; raises as `label` does."""
        return self.top[0][1]

    @property
    def top(self) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities, the best first; raises as `label` does."""
        if self.error is not None:
            raise self.error
        best = np.argsort(-self.probabilities, kind="stable")[: self.top_count].tolist()
        return [(self.classes[index], float(self.probabilities[index])) for index in best]

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Prediction for {self.image.name}\n  {self.error}"
        width = max(len(name) for name, _ in self.top)
        lines = [f"  {name:<{width}}  {probability:6.1%}" for name, probability in self.top]
        return "\n".join([f"Prediction for {self.image.name}", *lines])
