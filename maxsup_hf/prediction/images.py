"""Images: their classes, and the class of every pixel."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyarrow.compute as pc
import torch
from datasets import Dataset

from maxsup_hf.data.columns import find_column, is_image, is_string, read_column
from maxsup_hf.data.images import as_images, broken_images, describe_broken, holds_images, to_rgb
from maxsup_hf.prediction.model import Model, Row, logits_of, most_probable
from maxsup_hf.scripts.image_classification import IMAGE_NAMES

logger = logging.getLogger(__name__)


def classify_images(model: Model, rows: Dataset) -> list[Row]:
    images = _images(model, rows)
    found = most_probable(model.logits(images.readable, images.collate), model.names, model.args.top_k)
    return images.with_names(found)


def segment(model: Model, rows: Dataset) -> list[Row]:
    """The class of every pixel, as a PNG of the image's own size in a folder beside the output file."""
    folder = mask_folder(model.args)
    images = _images(model, rows)
    (column,) = images.readable.column_names
    files = rows["file"] if "file" in rows.column_names else [f"{i:06d}" for i in range(len(rows))]
    names = [Path(file).with_suffix(".png") for file in files]
    if len(set(names)) < len(names):  # a.jpg and a.png
        names = [Path(f"{file}.png") for file in files]
    paths = [folder / name for row, name in enumerate(names) if row not in images.broken]
    pixel = np.uint8 if model.model.config.num_labels <= 256 else np.uint16
    found: list[Row] = []
    for output in model.outputs(images.readable, images.collate):
        for logits in logits_of(output):
            i = len(found)
            width, height = images.readable[i][column].size
            scaled = torch.nn.functional.interpolate(logits[None].float(), (height, width), mode="bilinear")
            paths[i].parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(scaled.argmax(1)[0].cpu().numpy().astype(pixel)).save(paths[i])
            found.append({"prediction": str(paths[i])})
    return images.with_names(found)


def mask_folder(args: Namespace) -> Path:
    """The folder of the masks, beside the output file.

    Raises:
        FileExistsError: it has other files, such as the images themselves.
    """
    folder = Path(args.output_file).with_suffix("")
    is_input = args.test_dir is not None and folder.resolve() == Path(args.test_dir).resolve()
    if is_input or (folder.exists() and not args.overwrite and not (folder.is_dir() and not any(folder.iterdir()))):
        hint = "" if is_input else ", or give --overwrite"
        raise FileExistsError(f"output_file: the masks go into {str(folder)!r}, which is not empty; name another file{hint}")
    return folder


class _Images(NamedTuple):
    """The images of the rows.

    Attributes:
        readable: those that can be read, in the only column.
        collate: makes a batch of them.
        names: of all rows, such as the paths of their images; empty where there are none.
        broken: rows whose images cannot be read.
    """

    readable: Dataset
    collate: Callable[[list[Row]], Any]
    names: list[Row]
    broken: Collection[int]

    def with_names(self, found: Sequence[Row]) -> list[Row]:
        """The predictions of all rows with the names of their images; those of broken images are empty."""
        predicted = iter(found)
        empty = dict.fromkeys(found[0])
        return [{**name, **(empty if row in self.broken else next(predicted))} for row, name in enumerate(self.names)]


def _images(model: Model, rows: Dataset) -> _Images:
    args = model.args
    given = args.image_column_name
    column = find_column(rows, "image_column_name", given, fits=holds_images, names=IMAGE_NAMES, split="test")
    images = as_images(rows, column, "image_column_name", "test", args.test_file).select_columns(column)
    broken = broken_images(images, column, "test")
    if broken:
        problem = describe_broken(broken, len(images), "test")
        if not args.skip_broken_images or len(broken) == len(images):
            raise ValueError(f"image_column_name: {problem}; remove or repair them, or give --skip_broken_images")
        logger.warning("%s; nothing is predicted for them", problem)
    readable = images.select([row for row in range(len(images)) if row not in broken])
    return _Images(readable, partial(_pixels, column=column, processor=model.processor), _names(rows, column), broken)


def _names(rows: Dataset, column: str) -> list[Row]:
    """The paths of the images in a column, where they have any."""
    if is_string(rows.features[column]):
        return [{column: path} for path in read_column(rows, column).to_pylist()]
    if is_image(rows.features[column]) and "file" not in rows.column_names:
        paths = pc.struct_field(read_column(rows, column), "path").to_pylist()
        if any(paths):
            return [{"file": path} for path in paths]
    return [{} for _ in range(len(rows))]


def _pixels(batch: list[Row], column: str, processor: Any) -> Any:
    return processor([to_rgb(row[column]) for row in batch], return_tensors="pt")
