"""Columns and files of semantic segmentation: images, and masks that hold the class of each pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from maxsup_hf.data.columns import find_column, is_image
from maxsup_hf.data.files import loading
from maxsup_hf.data.loading import Splits
from maxsup_hf.output.messages import listed

IMAGE_NAMES = ("image", "img", "pixel_values", "image_path", "file", "file_name")
MASK_NAMES = ("mask", "label", "labels", "annotation", "segmentation", "segmentation_mask", "mask_path", "annotated")
PIXELS = "pixels"  # the column of the number of pixels of each class
LARGEST = 2**16  # no mask has as many classes
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def load_pair_folder(argument: str, path: str) -> Dataset:
    """The paths in a folder with the subfolders `images` and `masks`, paired by file name without extension.

    Columns: `image`, `mask`. Arguments as in `load_class_folders`.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: an image without a mask, or a mask without an image.
    """
    images, masks = (_image_files(argument, path, kind) for kind in ("images", "masks"))
    unpaired = sorted(images.keys() ^ masks.keys())
    if unpaired:
        raise ValueError(
            f"{argument}: every image needs a mask of the same name, and every mask an image; {len(unpaired)} in {path!r} "
            f"have none: {listed(unpaired)}"
        )
    return Dataset.from_dict({"image": list(images.values()), "mask": [masks[name] for name in images]})


def _image_files(argument: str, path: str, kind: str) -> dict[str, str]:
    """File name without extension -> path, of the images in a subfolder."""
    folder = Path(path) / kind
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument}: there is no folder {str(folder)!r}; expected {path}/images and {path}/masks")
    return {file.stem: str(file) for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES}


def find_mask_columns(dataset: Dataset, image: str | None, mask: str | None, split: str = "train") -> tuple[str, str]:
    """Find the columns of the images and of their masks; see `find_column`."""
    mask = find_column(dataset, "label_column_name", mask, fits=is_image, names=MASK_NAMES, taken=[image or ""], split=split)
    image = find_column(dataset, "image_column_name", image, fits=is_image, names=IMAGE_NAMES, taken=[mask], split=split)
    return image, mask


def check_masks(
    splits: Splits, image_column: str, mask_column: str, ignore_index: int, known: int = 0, source: str = ""
) -> tuple[Splits, int]:
    """Open every image and mask once, check them, and count the pixels of each class.

    Args:
        ignore_index: value of the pixels to ignore.
        known: K, the number of classes; if 0, it is one more than the largest value in the training masks.
        source: what `known` was learned from, for messages.

    Returns:
        Splits with the same rows and the only column `PIXELS`, (K,) integers; K, at least two.

    Raises:
        ValueError: an image or a mask cannot be opened, a mask differs from its image in size, is in colour or has a value
            that is neither a class nor `ignore_index`, or the number of classes is not in [2, `ignore_index`].
    """
    counts = {
        split: [_count_pixels(dataset, row, image_column, mask_column, split, ignore_index) for row in range(len(dataset))]
        for split, dataset in splits.items()
    }
    largest = {split: [len(count) - 1 for count in found] for split, found in counts.items()}
    if "train" in largest and max(largest["train"]) < 0:
        raise ValueError(
            f"label_column_name: all pixels of the training masks are {ignore_index}, which is ignored: there is nothing to "
            "train; correct the masks"
        )
    classes = known or max(largest["train"]) + 1
    if not 2 <= classes <= ignore_index:
        raise ValueError(
            f"label_column_name: the masks of the training data have {classes} classes (values from 0 on, without the "
            f"ignored {ignore_index}); training needs 2 to {ignore_index}"
        )
    for split, values in largest.items():
        if max(values) >= classes:
            raise ValueError(
                f"label_column_name: the mask in row {int(np.argmax(values))} of the {split} data has the value "
                f"{max(values)}, but {source or 'the training data'} has {classes} classes: values must be in "
                f"[0, {classes}), or {ignore_index} to ignore a pixel; name all classes with --class_names"
            )
    pixels = {}
    for split, found in counts.items():
        pixels[split] = Dataset.from_dict({PIXELS: [np.pad(count, (0, classes - len(count))) for count in found]})
    return pixels, classes


def _count_pixels(
    dataset: Dataset, row: int, image_column: str, mask_column: str, split: str, ignore_index: int
) -> NDArray[np.integer]:
    """How many pixels each class up to the largest in a mask has, after a check that it fits its image."""
    where = f"row {row} of the {split} data"
    with loading("image_column_name", f"{image_column}, {where}"):
        image = dataset.select_columns(image_column)[row][image_column]
    with loading("label_column_name", f"{mask_column}, {where}"):
        mask = to_array(dataset.select_columns(mask_column)[row][mask_column])
    height, width = mask.shape
    if (width, height) != image.size:
        raise ValueError(
            f"label_column_name: the mask in {where} is {width}x{height} pixels, its image {image.size[0]}x{image.size[1]}; "
            "they must have the same size"
        )
    values = mask[mask != ignore_index]
    if values.min(initial=0) < 0 or values.max(initial=0) >= LARGEST:
        wrong = values[(values < 0) | (values >= LARGEST)][0]
        raise ValueError(
            f"label_column_name: the mask in {where} has the value {wrong}; values must be classes from 0 on, or "
            f"{ignore_index} to ignore a pixel"
        )
    return np.bincount(values)


def to_array(mask: Any) -> NDArray[np.integer]:
    """(H, W) classes of a mask that is a PIL image: its grey values, or its indices into a palette.

    Raises:
        ValueError: it has several channels, or values that are not integers.
    """
    values = np.asarray(mask)
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ValueError(f"a mask must have one channel of class indices, got an image of mode {mask.mode}")
    return values.astype(np.int32)
