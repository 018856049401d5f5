"""Images as the data have them, and where in them a model's input lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from torch import Tensor

LONGEST = 512  # pixels of a side in the report; larger photographs are scaled down
MOST_BENT = 0.02  # of the image, that a processor may move a place away from a straight line


@dataclass(frozen=True)
class Photos:
    """The images of a data set.

    Attributes:
        image: row -> the image in RGB.
        pixels: image -> (C, h, w), what the model is given.
    """

    image: Callable[[int], PIL.Image.Image]
    pixels: Callable[[PIL.Image.Image], Tensor]

    def load(self, row: int) -> NDArray[np.float64]:
        """(H, W, 3) in [0, 1], no side longer than `LONGEST`."""
        image = self.image(row).copy()
        image.thumbnail((LONGEST, LONGEST))
        return np.asarray(image, dtype=np.float64) / 255


def place_in_photo(photos: Photos, row: int) -> tuple[float, float, float, float] | None:
    """Where the model's input lies in `photos.load(row)`: left, right, bottom, top, in pixels.

    Processors resize, crop and pad in many ways. Instead of knowing them all, two images of the same size whose brightness
    is the place, from left to right and from top to bottom, are processed like the photograph, and the places are read off.

    Returns:
        The place, which is larger than the photograph where the processor pads; `None` if a processor bends the image, or
        is sensitive to its content.
    """
    size = photos.image(row).size
    height, width = photos.load(row).shape[:2]
    black, white = (_brightness(photos, PIL.Image.new("RGB", size, color)) for color in ("black", "white"))
    ends = []
    for axis, length in ((1, width), (0, height)):
        steps = (np.arange(size[1 - axis]) + 0.5) / size[1 - axis]
        ramp = np.broadcast_to(np.expand_dims(255 * steps, 1 - axis), size[::-1])
        seen = _brightness(photos, PIL.Image.fromarray(ramp.round().astype(np.uint8)).convert("RGB"))
        # along the other axis, where the range from black to white is 0 the processor pads
        ranges = (white - black).sum(1 - axis)
        first_last = _straight((seen - black).sum(1 - axis) / np.where(ranges == 0, np.inf, ranges))
        if first_last is None:
            return None
        ends.append(tuple(length * end for end in first_last))
    (left, right), (top, bottom) = ends
    return left, right, bottom, top


def _brightness(photos: Photos, image: PIL.Image.Image) -> NDArray[np.float64]:
    return photos.pixels(image)[0].double().numpy()


def _straight(places: NDArray[np.float64]) -> tuple[float, float] | None:
    """Where the first pixel begins and the last one ends, from the places of the middles of all pixels."""
    inside = places[(places > 0) & (places < 1)]  # the others are padding
    if not len(inside):
        return None
    # An enlarged image has no values beyond its outer ones: there the places stand still.
    known = np.flatnonzero((places > inside.min()) & (places < inside.max()))
    if len(known) < 2:
        return None
    slope, start = np.polyfit(known + 0.5, places[known], 1)
    if np.abs(slope * (known + 0.5) + start - places[known]).max() > MOST_BENT:
        return None
    return float(start), float(start + slope * len(places))
