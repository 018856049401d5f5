"""Columns of images: decoding, and the checks before training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, Image, Value
from datasets.utils import tqdm

from maxsup_hf.data.columns import check_column, check_not_missing, check_type, is_image, is_string, read_column
from maxsup_hf.data.files import expand, is_saved
from maxsup_hf.output.messages import listed

DEEP = ("I", "F")  # modes of more than 8 bits a channel; a suffix may follow them (I;16)
AT_ONCE = 1024  # images that are checked together: encoded images in memory


def is_encoded_image(feature: Any) -> bool:
    """Whether a column holds encoded images: their bytes, or bytes and path as `datasets` stores them."""
    if isinstance(feature, dict):
        return {"bytes", "path"} <= feature.keys()
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def holds_images(feature: Any) -> bool:
    """Whether a column holds images, decoded or encoded."""
    return is_image(feature) or is_encoded_image(feature)


def as_images(dataset: Dataset, column: str, argument: str, split: str, file: str | None = None) -> Dataset:
    """Turn a column of paths or encoded images into one of images.

    Args:
        file: that the rows were read from, or several as in `load_file`; relative paths are looked for beside them first.

    Raises:
        ValueError, TypeError: the column does not exist, has missing values, or holds something else.
    """
    check_column(dataset, column, argument, split)
    check_type(
        dataset, column, argument, split, fits=lambda feature: holds_images(feature) or is_string(feature),
        expected="images, their bytes, or paths",
    )  # fmt: skip
    check_not_missing(dataset, column, split)
    if is_string(dataset.features[column]) and file is not None and not is_saved(file):
        folders = list(dict.fromkeys(Path(each).absolute().parent for each in expand(argument, file)))
        paths = [_found_in(folders, path) for path in read_column(dataset, column).to_pylist()]
        dataset = dataset.remove_columns(column).add_column(column, paths)
    return dataset.cast_column(column, Image())


def _found_in(folders: Sequence[Path], path: str) -> str:
    return next((str(folder / path) for folder in folders if (folder / path).exists()), path)


def check_images(dataset: Dataset, column: str, argument: str, split: str) -> None:
    """Decode all images.

    Raises:
        ValueError: see `broken_images`; the message names the first of them.
    """
    problems = broken_images(dataset, column, split)
    if problems:
        raise ValueError(f"{argument}: {describe_broken(problems, len(dataset), split)}; remove or repair them")


def broken_images(dataset: Dataset, column: str, split: str) -> dict[int, str]:
    """Row -> what is wrong, of the images that are missing, truncated or not images, or have more than 8 bits a channel.

    All images are decoded, in as many threads as there are cores.
    """
    undecoded = dataset.cast_column(column, Image(decode=False)).select_columns(column)
    problems = {}
    starts = tqdm(range(0, len(dataset), AT_ONCE), desc=f"checking the images of the {split} data", unit=f"×{AT_ONCE}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in starts:
            cells = undecoded[start : start + AT_ONCE][column]
            found = enumerate(pool.map(_problem, cells), start)
            problems.update({row: problem for row, problem in found if problem is not None})
    return problems


def describe_broken(problems: Mapping[int, str], count: int, split: str) -> str:
    """How many of `count` images are broken, and what is wrong with the first of them."""
    first = listed([f"row {row}{problem}" for row, problem in problems.items()], 3, "; ")
    return f"{len(problems)} of {count} images of the {split} data cannot be used: {first}"


def _problem(cell: dict[str, Any]) -> str | None:
    """What is wrong with an image that is not decoded yet, preceded by its path; `None` if nothing is."""
    path, content = cell["path"], cell["bytes"]
    if content is path is None:
        return ": it has neither bytes nor a path"
    if content is None and "://" in path and not Path(path).exists():
        return None  # in an archive or on another machine
    try:
        with PIL.Image.open(path if content is None else BytesIO(content)) as image:
            check_depth(image)
            image.draft("RGB", (64, 64))  # a JPEG is read to its end, but decoded at a smaller size
            image.load()
    except PIL.UnidentifiedImageError:
        return ": cannot identify the format" if path is None else f" ({path}): cannot identify the format"
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        return f": {error}" if path is None else f" ({path}): {error}"
    return None


def check_depth(image: PIL.Image.Image) -> None:
    """Raise ValueError if an image has more than 8 bits a channel. Pillow would clip it instead of scaling it, so that most
    of it becomes white."""
    if image.mode.partition(";")[0] in DEEP:
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel, which RGB would clip; scale it to 8")


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image in RGB; what is transparent becomes white.

    Raises:
        ValueError: see `check_depth`.
    """
    check_depth(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
