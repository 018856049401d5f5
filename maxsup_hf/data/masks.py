"""Images with a mask: a picture of the same size whose values are the classes of the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from maxsup_hf.data.columns import find_column, is_image
from maxsup_hf.data.loading import Splits, loading

IMAGE_NAMES = ("image", "img", "pixel_values", "image_path", "file", "file_name")
MASK_NAMES = ("mask", "label", "labels", "annotation", "segmentation", "segmentation_mask", "mask_path", "annotated")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def load_pair_folder(argument: str, path: str) -> Dataset:
    """A folder with the subfolders `images` and `masks`, whose files go together by their names without the extension.

    Columns: `image`, `mask` (paths). Arguments as in `load_class_folders`.

    Raises:
        FileNotFoundError: a folder is not there.
        ValueError: an image without a mask, or a mask without an image.
    """
    found = {}
    for kind in ("images", "masks"):
        folder = Path(path) / kind
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{argument}: there is no folder {str(folder)!r}; expected {path}/images and {path}/masks"
            )
        found[kind] = {file.stem: str(file) for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES}
    lonely = sorted(found["images"].keys() ^ found["masks"].keys())
    if lonely:
        raise ValueError(
            f"{argument}: every image needs a mask of the same name, and every mask an image; {len(lonely)} in {path!r} "
            f"have none: {', '.join(lonely[:5])}"
        )
    return Dataset.from_dict({"image": list(found["images"].values()), "mask": [found["masks"][k] for k in found["images"]]})


def find_columns(dataset: Dataset, image: str | None, mask: str | None) -> tuple[str, str]:
    """The columns of the images and of their masks, as `find_column` does."""
    mask_column = find_column(dataset, "label_column_name", mask, fits=is_image, names=MASK_NAMES, taken=[image or ""])
    return (
        find_column(dataset, "image_column_name", image, fits=is_image, names=IMAGE_NAMES, taken=[mask_column]),
        mask_column,
    )


def count_classes(splits: Splits, image_column: str, mask_column: str, names: list[str], ignore_index: int) -> int:
    """Open every image and mask once, and check them.

    Args:
        names: of the K classes; where there are none, K is one more than the greatest value in the training masks.
        ignore_index: the value of pixels without a class.

    Returns:
        K, at least two.

    Raises:
        ValueError: an image or a mask cannot be opened, a mask has another size than its image, or colours, or a value that
            is neither a class nor `ignore_index`; the masks have a single class, or no more than 255 fit.
    """
    greatest: dict[str, list[int]] = {}
    for split, dataset in splits.items():
        greatest[split] = []
        for row in range(len(dataset)):
            where = f"row {row} of the {split} data"
            with loading("image_column_name", f"{image_column}, {where}"):
                image = dataset.select_columns(image_column)[row][image_column]
            with loading("label_column_name", f"{mask_column}, {where}"):
                mask = to_array(dataset.select_columns(mask_column)[row][mask_column])
            if mask.shape != image.size[::-1]:
                height, width = mask.shape
                raise ValueError(
                    f"label_column_name: the mask in {where} is {width}x{height} pixels, its image "
                    f"{image.size[0]}x{image.size[1]}; they must have one size"
                )
            greatest[split].append(int(mask[mask != ignore_index].max(initial=0)))
    classes = len(names) or max(greatest["train"]) + 1
    if not 2 <= classes <= ignore_index:
        raise ValueError(
            f"label_column_name: the masks of the training data have {classes} classes (values from 0 on, without the "
            f"ignored {ignore_index}); training needs 2 to {ignore_index}"
        )
    for split, values in greatest.items():
        if max(values) >= classes:
            source = "class_names" if names else "the training data"
            raise ValueError(
                f"label_column_name: the mask in row {int(np.argmax(values))} of the {split} data has the value "
                f"{max(values)}, but {source} has {classes} classes: values must lie in [0, {classes}), or be "
                f"{ignore_index} where a pixel is to be ignored; name all classes with --class_names"
            )
    return classes


def to_array(mask: Any) -> NDArray[np.integer]:
    """(H, W) values of a mask that is a PIL image: grey values, or indices of a palette.

    Raises:
        ValueError: it has colours.
    """
    values = np.asarray(mask)
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ValueError(f"a mask must have one channel of class indices, got an image of mode {mask.mode}")
    return values.astype(np.int32)
