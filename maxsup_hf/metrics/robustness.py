"""Long-tailed training sets and corrupted images: what lies away from balanced, clean data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import as_array

# Hendrycks & Dietterich 2019 (arXiv 1903.12261): noise, blur, weather, digital.
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIZE = 32  # the library's limit

LIU = "Liu et al. 2019, arXiv 1904.05160"

register_metrics(
    Metric("many", "many-shot accuracy", higher_is_better=True, paper=LIU,
           formula="mean accuracy of the classes with more than 100 training rows"),
    Metric("medium", "medium-shot accuracy", higher_is_better=True, paper=LIU,
           formula="mean accuracy of the classes with 20 to 100 training rows"),
    Metric("few", "few-shot accuracy", higher_is_better=True, paper=LIU,
           formula="mean accuracy of the classes with fewer than 20 training rows"),
    Metric("all", "mean class accuracy", higher_is_better=True, paper=LIU, formula="mean accuracy of all classes"),
)  # fmt: skip


# ---- long tails ----


def long_tailed_counts(largest: int, num_classes: int, ratio: float) -> NDArray[np.int64]:
    """Rows of each class in an exponential long tail (Cao et al. 2019, arXiv 1906.07413): ⌊largest·ratio^(−k/(K−1))⌋.

    Args:
        largest: rows of class 0.
        num_classes: K, at least 2.
        ratio: rows of class 0 over rows of class K − 1, at least 1.

    Raises:
        ValueError: an argument out of range, or a ratio that leaves the last class without rows.
    """
    if num_classes < 2 or largest < 1 or not 1 <= ratio < float("inf"):
        raise ValueError(
            "a long tail needs num_classes of at least 2, largest of at least 1 and a finite ratio of at least 1, got "
            f"{num_classes}, {largest} and {ratio}"
        )
    exact = largest * ratio ** (-np.arange(num_classes) / (num_classes - 1))
    counts = np.floor(exact + 1e-9).astype(np.int64)  # 5000 / 100 is 50 rows, whatever the powers round to
    if counts[-1] < 1:
        raise ValueError(f"with {largest} rows in the largest class, a ratio of {ratio} leaves the smallest class empty")
    return counts


def long_tailed_subset(labels: ArrayLike, ratio: float, *, seed: int = 0, largest: int | None = None) -> NDArray[np.int64]:
    """Rows of a long-tailed subset: class k keeps `long_tailed_counts` of its rows, chosen at random.

    For the same seed, a smaller ratio keeps every row that a greater one keeps.

    Args:
        labels: (N,) integers; the classes are 0 to the greatest label.
        ratio: as in `long_tailed_counts`.
        seed: of the random choice.
        largest: rows of class 0. Default: as many as the rarest class has.

    Returns:
        Indices into `labels`, ascending.

    Raises:
        ValueError: labels that are not integers from 0 up, a class with fewer rows than it should keep, or as in
            `long_tailed_counts`.
    """
    y = as_array(labels)
    if y.ndim != 1 or not len(y) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(f"expected labels (N,), integers from 0 up, got {y.dtype} {y.shape}")
    available = np.bincount(y)
    counts = long_tailed_counts(int(available.min()) if largest is None else largest, len(available), ratio)
    if (counts > available).any():
        k = int((counts > available).argmax())
        raise ValueError(f"class {k} should keep {counts[k]} rows and has {available[k]}; choose a smaller largest")
    order = np.random.default_rng(seed).permutation(len(y))
    kept = [order[y[order] == k][:count] for k, count in enumerate(counts)]
    return np.sort(np.concatenate(kept))


def shot_accuracy(
    predictions: ArrayLike, labels: ArrayLike, train_counts: ArrayLike, *, many: int = 100, few: int = 20
) -> dict[str, float]:
    """Accuracy of classes with many, medium and few training rows (Liu et al. 2019, arXiv 1904.05160).

    Args:
        predictions, labels: (N,) integers in [0, K), of a test set.
        train_counts: (K,) training rows of each class.
        many: a class with more training rows than this has many.
        few: a class with fewer training rows than this has few.

    Returns:
        `many`, `medium`, `few` and `all`: the accuracy of each class with test rows, averaged over the group's classes, in
        [0, 1]; NaN for a group without such classes.

    Raises:
        ValueError: shapes or types that do not fit, or values out of range.
    """
    guesses, truths, counts = as_array(predictions), as_array(labels), as_array(train_counts)
    if guesses.shape != truths.shape or truths.ndim != 1 or not len(truths) or counts.ndim != 1:
        raise ValueError(
            f"expected predictions (N,), labels (N,) and train_counts (K,), got {guesses.shape}, {truths.shape} and "
            f"{counts.shape}"
        )
    for name, values in (("predictions", guesses), ("labels", truths)):
        if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() >= len(counts):
            raise ValueError(
                f"{name} must be integers in [0, {len(counts)}), got {values.dtype} {values.min()} to {values.max()}"
            )
    if not (counts >= 0).all():
        raise ValueError("train_counts must be numbers of rows, at least 0; some are negative or NaN")
    if few > many:
        raise ValueError(f"few must not exceed many, got {few} and {many}")
    rows = np.bincount(truths, minlength=len(counts))
    right = np.bincount(truths, guesses == truths, minlength=len(counts))
    groups = {
        "many": counts > many,
        "medium": (counts >= few) & (counts <= many),
        "few": counts < few,
        "all": np.ones(len(counts), bool),
    }
    tested = rows > 0
    accuracies = right / np.maximum(rows, 1)
    found = {}
    for name, group in groups.items():
        of_group = accuracies[group & tested]
        found[name] = float(of_group.mean()) if len(of_group) else float("nan")
    return found


# ---- corruptions ----


def corrupt(image: Any, corruption: str, severity: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """One of the 15 common corruptions, by the library `imagecorruptions-imaug`.

    Args:
        image: PIL image, or array (H, W, 3) or (H, W) of uint8; at least 32 × 32.
        corruption: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the random corruptions; the same seed gives the same image. NumPy's global generator is left as it was.

    Returns:
        (H, W, 3) uint8, also for a grey image.

    Raises:
        ValueError: an unknown corruption or severity, a wrong shape or type, or an image that is too small.
        ImportError: the library, or a system library that it needs, is not installed.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {corruption!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, got {severity!r}")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"expected an image (H, W, 3) or (H, W) of uint8, got {pixels.dtype} {pixels.shape}")
    if min(pixels.shape[:2]) < MIN_SIZE:
        raise ValueError(
            f"images must be at least {MIN_SIZE} × {MIN_SIZE} to be corrupted, got {pixels.shape[0]} × {pixels.shape[1]}; "
            "resize them first"
        )
    try:
        import imagecorruptions
    except ImportError as error:
        raise ImportError(
            f"corrupt() needs imagecorruptions-imaug ({error}): pip install imagecorruptions-imaug; if libGL is missing, "
            "replace opencv-python by opencv-python-headless"
        ) from error
    # Most corruptions draw from NumPy's global generator; these two take a seed, without which each call is different.
    own_seed = {"seed": seed} if corruption in ("glass_blur", "impulse_noise") else {}
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        return imagecorruptions.corrupt(pixels, severity, corruption, **own_seed)
    finally:
        np.random.set_state(state)
