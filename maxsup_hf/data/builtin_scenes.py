"""Built-in data set for segmentation: pictures of several handwritten digits, with the class of every pixel."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, Features, Image

SCENE_CLASSES = ("background", *map(str, range(10)))
CANVAS, DIGITS = 40, 4
INK = 8  # of 16: pixels of a digit that are at least this dark get its class


def digit_scenes() -> Dataset:
    """Four of scikit-learn's digits at a time, doubled in size, at random places on a noisy background: 449 images, 40x40.

    Every digit is in one image only, so that held-out digits are unseen. Columns: `image` (grey), `mask` (0: background,
    1 to 10: the digits 0 to 9, 255: ignored, the pixels around a stroke, whose edge is not sharp).
    """
    from PIL.Image import fromarray
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"image": [], "mask": []}
    half, size = CANVAS // 2, 2 * data.images.shape[1]
    order = rng.permutation(len(data.images))
    for chosen in order[: len(order) // DIGITS * DIGITS].reshape(-1, DIGITS):
        image = rng.normal(64, 24, (CANVAS, CANVAS))
        mask = np.zeros((CANVAS, CANVAS), np.uint8)
        for quarter, i in zip(rng.permutation(4), chosen, strict=False):
            top, left = half * np.array(divmod(quarter, 2)) + rng.integers(0, half - size + 1, 2)
            window = np.s_[top : top + size, left : left + size]
            digit = np.kron(data.images[i], np.ones((2, 2)))
            image[window] += digit * rng.uniform(4, 10)
            mask[window] = np.where(digit >= INK, data.target[i] + 1, 0)
        ink = np.pad(mask > 0, 1)
        beside_ink = ink[:-2, 1:-1] | ink[2:, 1:-1] | ink[1:-1, :-2] | ink[1:-1, 2:]
        mask[beside_ink & (mask == 0)] = 255
        rows["image"].append(fromarray(image.clip(0, 255).astype(np.uint8)))
        rows["mask"].append(fromarray(mask))
    return Dataset.from_dict(rows, Features({"image": Image(), "mask": Image()}))
