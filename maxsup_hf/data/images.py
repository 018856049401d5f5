"""Columns of images: decoding, and the checks before training."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, Image

from maxsup_hf.data.columns import check_column, check_not_missing, check_type, is_image, is_string
from maxsup_hf.data.loading import loading
from maxsup_hf.data.messages import listed

DEEP = ("I", "F")  # modes of more than 8 bits a channel; a suffix may follow them (I;16)
MOST_OPENED = 10_000  # images before training, evenly spaced if there are more


def as_images(dataset: Dataset, column: str, argument: str, split: str) -> Dataset:
    """Turn a column of paths into one of images.

    Raises:
        ValueError, TypeError: the column does not exist, has missing values, or holds something else.
    """
    check_column(dataset, column, argument, split)
    check_type(
        dataset, column, argument, split, fits=lambda feature: is_image(feature) or is_string(feature),
        expected="images or paths",
    )  # fmt: skip
    check_not_missing(dataset, column, split)
    return dataset.cast_column(column, Image())


def check_images(dataset: Dataset, column: str, argument: str, split: str) -> None:
    """Decode the first image, and read the header of the others (at most `MOST_OPENED`).

    Raises:
        ValueError: files are not images, or have more than 8 bits a channel; the message names the first of them.
    """
    with loading(argument, f"{column}, row 0 of the {split} data"):
        dataset[0][column].load()
    undecoded = dataset.cast_column(column, Image(decode=False))
    step = -(-len(dataset) // MOST_OPENED)
    problems = []
    for row in range(0, len(dataset), step):
        problem = _problem(undecoded[row][column])
        if problem is not None:
            problems.append(f"row {row}{problem}")
    if problems:
        raise ValueError(
            f"{argument}: {len(problems)} of {len(dataset)} images of the {split} data cannot be used; remove or repair "
            f"them: {listed(problems, 3, '; ')}"
        )


def _problem(cell: dict[str, Any]) -> str | None:
    """What is wrong with an image that is not decoded yet, preceded by its path; `None` if nothing is."""
    path, content = cell["path"], cell["bytes"]
    if content is None and not Path(path).exists() and "://" in path:
        return None  # in an archive or on another machine
    try:
        with PIL.Image.open(path if content is None else BytesIO(content)) as image:
            check_depth(image)
    except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        return f": {error}" if path is None else f" ({path}): {error}"
    return None


def check_depth(image: PIL.Image.Image) -> None:
    """Raise ValueError if an image has more than 8 bits a channel. Pillow would clip it instead of scaling it, so that most
    of it becomes white."""
    if image.mode.partition(";")[0] in DEEP:
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel, which RGB would clip; scale it to 8")


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Raises:
    ValueError: see `check_depth`.
    """
    check_depth(image)
    return image.convert("RGB")
