"""Columns of images, and the image processor of a task."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, Image
from transformers import AutoImageProcessor

from maxsup_hf.scripts.body.arguments import ScriptArguments, flag
from maxsup_hf.scripts.body.columns import check_column, check_not_missing, is_image, is_string
from maxsup_hf.scripts.body.loading import loading
from maxsup_hf.scripts.body.models import hub_options

DEEP = ("I", "F")  # modes of more than 8 bits a channel, with what follows them (I;16)
MOST = 10_000  # images that are opened before training, evenly spread where there are more


@dataclass
class ImageArguments(ScriptArguments):
    """Flags of every task on images; a task says what its folders look like."""

    train_dir: str | None = flag("Training data: a folder.")
    validation_dir: str | None = flag("Validation data, as --train_dir.")
    test_dir: str | None = flag("Test data, evaluated once at the end, as --train_dir.")
    image_column_name: str | None = flag("Column of the images, or of paths to them (default: found by its type or name).")
    image_processor_name: str | None = flag("Image processor: a Hub id or a folder (default: that of the model).")
    image_size: int = flag("Height and width in pixels that the default model takes; images are resized to it.", 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")


def named_processor(args: ImageArguments) -> tuple[Any, str]:
    """The image processor that is named or comes with the model, or `None`; and the argument that it comes by.

    Raises:
        ValueError: it cannot be loaded.
    """
    argument = "image_processor_name" if args.image_processor_name else "model_name_or_path"
    source = getattr(args, argument)
    if not source:
        return None, argument
    with loading(argument, source):
        return AutoImageProcessor.from_pretrained(source, **hub_options(args)), argument


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
