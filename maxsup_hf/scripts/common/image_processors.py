"""Flags of the image tasks, and their image processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoImageProcessor, TrainingArguments

from maxsup_hf.data.arguments import flag
from maxsup_hf.data.loading import Splits, loading
from maxsup_hf.scripts.common.arguments import ScriptArguments
from maxsup_hf.scripts.common.models import hub_options


@dataclass
class ImageArguments(ScriptArguments):
    """Flags of every image task. A task says in the help of `train_dir` how its folders are laid out."""

    train_dir: str | None = flag("Training data: a folder.")
    validation_dir: str | None = flag("Validation data, as --train_dir.")
    test_dir: str | None = flag("Test data, evaluated once at the end, as --train_dir.")
    image_column_name: str | None = flag("Column of the images, or of paths to them (default: found by its type or name).")
    image_processor_name: str | None = flag("Image processor: a Hub id or a folder (default: that of the model).")
    image_size: int = flag("Height and width in pixels for the default model; images are resized to it.", 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")


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
        return AutoImageProcessor.from_pretrained(source, **hub_options(args)), argument


def transform_on_reading(splits: Splits, transform: Callable[[Any], Any], training_args: TrainingArguments) -> Splits:
    """Turn images into the model's inputs only when their rows are read.

    The transform needs columns that the model does not take, so the Trainer must not remove them.
    """
    training_args.remove_unused_columns = False
    return {split: dataset.with_transform(transform) for split, dataset in splits.items()}
