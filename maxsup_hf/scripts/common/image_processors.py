"""Flags of the image tasks, and their image processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoImageProcessor, TrainingArguments

from maxsup_hf.data.arguments import flag
from maxsup_hf.data.files import loading
from maxsup_hf.data.images import as_images, check_images
from maxsup_hf.data.loading import Splits
from maxsup_hf.scripts.common.arguments import ScriptArguments
from maxsup_hf.scripts.common.models import hub_options

LARGEST = 8192  # pixels; beyond that, not even one image fits into most memories


@dataclass
class ImageArguments(ScriptArguments):
    """Flags of every image task. A task says in the help of `train_dir` how its folders are laid out."""

    train_dir: str | None = flag("Training data: a folder.")
    validation_dir: str | None = flag("Validation data, as --train_dir.")
    test_dir: str | None = flag("Test data, evaluated once at the end, as --train_dir.")
    image_column_name: str | None = flag("Column of the images, or of paths to them (default: found by its type or name).")
    image_processor_name: str | None = flag("Image processor: a Hub id or a folder (default: that of the model).")
    image_size: int | None = flag(
        "Height and width in pixels that images are resized to (default: what the model's processor says; without one, "
        "what the model takes, or a small size)."
    )
    skip_image_check: bool = flag("Do not decode all images before training, for millions of images.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST:
            raise ValueError(f"image_size must be between 1 and {LARGEST:,} pixels, got {self.image_size}")


def load_images(args: ImageArguments, splits: Splits, column: str) -> Splits:
    """The splits with a column of decoded and checked images.

    Raises:
        ValueError, TypeError: see `as_images` and `check_images`.
    """
    loaded = {}
    for split, dataset in splits.items():
        loaded[split] = as_images(dataset, column, "image_column_name", split, getattr(args, f"{split}_file"))
        if not args.skip_image_check:
            check_images(loaded[split], column, "image_column_name", split)
    return loaded


def named_processor(args: ImageArguments) -> tuple[Any, str]:
    """The image processor of `--image_processor_name` or of the model, and the flag that it was loaded by.

    The processor is `None` if there is neither.

    Raises:
        ValueError: it cannot be loaded.
    """
    argument = "image_processor_name" if args.image_processor_name else "model_name_or_path"
    source = getattr(args, argument)
    if not source:
        return None, argument
    with loading(argument, source):
        processor = AutoImageProcessor.from_pretrained(source, **hub_options(args))
    if args.image_size is not None:
        processor = with_size(processor, args.image_size)
    return processor, argument


def with_size(processor: Any, pixels: int) -> Any:
    """An image processor that resizes to a square; one that resizes and then crops does no more than the first."""
    if hasattr(processor, "data_config"):  # timm's, whose transforms are made by its constructor
        return type(processor)({**processor.data_config, "input_size": (3, pixels, pixels)}, processor.architecture)
    processor.size = {"height": pixels, "width": pixels}
    if getattr(processor, "crop_size", None) is not None:
        processor.crop_size = {"height": pixels, "width": pixels}
    return processor


def normalization(processor: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of each channel that an image processor normalizes with; `None` if it does not."""
    if hasattr(processor, "data_config"):
        return processor.data_config["mean"], processor.data_config["std"]
    if not getattr(processor, "do_normalize", False):
        return None, None
    return getattr(processor, "image_mean", None), getattr(processor, "image_std", None)


def transform_on_reading(
    splits: Splits,
    transform: Callable[[Any], Any],
    training_args: TrainingArguments,
    in_training: Callable[[Any], Any] | None = None,
) -> Splits:
    """Turn images into the model's inputs only when their rows are read.

    The transform needs columns that the model does not take, so the Trainer must not remove them.

    Args:
        in_training: the transform of the training data, if it is another one.
    """
    training_args.remove_unused_columns = False
    transforms = {"train": in_training or transform}
    return {split: dataset.with_transform(transforms.get(split, transform)) for split, dataset in splits.items()}
