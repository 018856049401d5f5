"""Columns of images: decoding, and the checks before training."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import PIL.Image
from datasets import Dataset, Image

from maxsup_hf.data.columns import check_column, check_not_missing, is_image, is_string
from maxsup_hf.data.loading import loading

DEEP = ("I", "F")  # modes of more than 8 bits a channel, with what follows them (I;16)
MOST = 10_000  # images that are opened before training, evenly spread where there are more


def as_images(dataset: Dataset, column: str, argument: str, split: str) -> Dataset:
    """Paths become images.

    Raises:
        ValueError, TypeError: the column is not there, has missing values, or holds something else.
    """
    check_column(dataset, column, argument, split)
    feature = dataset.features[column]
    if not (is_image(feature) or is_string(feature)):
        kind = getattr(feature, "dtype", type(feature).__name__)
        raise TypeError(f"{argument}: column {column!r} of the {split} data must hold images or paths, not {kind}")
    check_not_missing(dataset, column, split)
    return dataset.cast_column(column, Image())


def check_images(dataset: Dataset, column: str, argument: str, split: str) -> None:
    """Decode the first image, and read the head of every other, of `MOST` at most.

    Raises:
        ValueError: files that are no images, or have more than 8 bits a channel; the message names the first of them.
    """
    with loading(argument, f"{column}, row 0 of the {split} data"):
        dataset[0][column].load()
    undecoded = dataset.cast_column(column, Image(decode=False))
    broken = []
    for i in range(0, len(dataset), -(-len(dataset) // MOST)):
        cell = undecoded[i][column]
        if cell["bytes"] is None and not Path(cell["path"]).exists() and "://" in cell["path"]:
            continue  # in an archive or on another machine
        try:
            with PIL.Image.open(cell["path"] if cell["bytes"] is None else BytesIO(cell["bytes"])) as image:
                check_depth(image)
        except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
            broken.append(f"row {i}{'' if cell['path'] is None else ' (' + str(cell['path']) + ')'}: {error}")
    if broken:
        listed = "; ".join(broken[:3]) + ("; …" if len(broken) > 3 else "")
        raise ValueError(
            f"{argument}: {len(broken)} of {len(dataset)} images of the {split} data cannot be used; remove or repair "
            f"them: {listed}"
        )


def check_depth(image: PIL.Image.Image) -> None:
    """Raises:
    ValueError: more than 8 bits a channel, which Pillow clips instead of scaling: most of such an image becomes white.
    """
    if image.mode.partition(";")[0] in DEEP:
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel, which RGB would clip; scale it to 8")


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Raises:
    ValueError: see `check_depth`.
    """
    check_depth(image)
    return image.convert("RGB")
