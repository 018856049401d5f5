"""Train or fine-tune an image classifier.

Without arguments: a tiny ResNet on scikit-learn's handwritten digits. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForImageClassification,
    PretrainedConfig,
    ResNetConfig,
    ViTImageProcessorPil,
    default_data_collator,
)

from maxsup_hf.data.arguments import data_flags, flag
from maxsup_hf.data.augmentation import AUGMENTATIONS, Augmentation
from maxsup_hf.data.builtin import digits
from maxsup_hf.data.class_folders import load_class_folders, load_image_folder
from maxsup_hf.data.columns import find_column, report_columns
from maxsup_hf.data.images import holds_images, to_rgb
from maxsup_hf.data.labels import classification_splits, find_label_column
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.data.mixup import MODES, MixupCollator
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.image_processors import (
    ImageArguments,
    load_images,
    named_processor,
    normalization,
    transform_on_reading,
)
from maxsup_hf.scripts.common.models import build_model, load_config, set_classes
from maxsup_hf.trainer.callbacks import FeatureGeometryCallback
from maxsup_hf.trainer.trainer import MaxSupTrainer

TASK = "image-classification"
IMAGE_NAMES = ("image", "img", "image_path", "image_file", "path", "file", "file_name", "filename")

DEFAULT_SIZE = 32  # pixels, for the default model

FROM_SCRATCH = {
    **recipes.FROM_SCRATCH,
    "logging_steps": 20,
    "per_device_train_batch_size": 64,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
}
BUILTIN = {**FROM_SCRATCH, "num_train_epochs": 8}
FINE_TUNING = {**recipes.FINE_TUNING, "logging_steps": 20, "per_device_eval_batch_size": 64}
RECIPES = recipes.Recipes(BUILTIN, FROM_SCRATCH, FINE_TUNING)


@dataclass
class ImageClassificationArguments(ImageArguments):
    """Flags of image classification."""

    train_dir: str | None = flag("Training data: a folder with a subfolder of images for each class.")
    log_feature_geometry: bool = flag(run.GEOMETRY_HELP, False)
    augmentation: str | None = flag(
        f"Random augmentation of the training images: {', '.join(AUGMENTATIONS)} (default: crop_flip on your own images, "
        "none on the built-in digits, which a flip would change)."
    )
    random_erasing: float = flag("Share of the training images of which a random rectangle is erased.", 0.0)
    mixup_alpha: float = flag("Mix images in training, with shares from Beta(alpha, alpha) (Mixup); 0 turns it off.", 0.0)
    cutmix_alpha: float = flag("Paste boxes of one image into another in training (CutMix), as --mixup_alpha.", 0.0)
    mixup_prob: float = flag("Probability of mixing, if Mixup or CutMix is on.", 1.0)
    mixup_switch_prob: float = flag("Probability of CutMix, if both are on.", 0.5)
    mixup_mode: str = flag("Draw the shares once for each batch, pair or elem(ent).", "batch")


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(ImageClassificationArguments, argv, TASK, RECIPES, classifies=True)
    config = load_config(args)
    with training_args.main_process_first(desc="loading the data"):
        splits, image_column, names = _load_images(args, config)
    config = set_classes(config or _default_config(), names)
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError(
            f"config_name: the model must take 3 channels (RGB), got num_channels={config.num_channels}; set it to 3"
        )
    stored = getattr(config, "pretrained_cfg", None)
    if stored is not None and args.image_size is not None:  # timm's image processor is saved in the config of the model
        stored["input_size"] = [3, args.image_size, args.image_size]
    collator = _collator(args, len(names))
    model = build_model(AutoModelForImageClassification, config, args, training_args.seed)
    processor = _image_processor(args, config)
    transform = partial(to_pixels, column=image_column, processor=processor)
    augmented = partial(transform, augmentation=_augmentation(args, processor))
    rows = splits
    splits = transform_on_reading(rows, transform, training_args, augmented)
    trainer = MaxSupTrainer(
        model,
        training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        data_collator=collator,
        compute_metrics=run.ClassificationMetrics(names),
        preprocess_logits_for_metrics=run.only_logits,
    )
    if args.log_feature_geometry:
        trainer.add_callback(FeatureGeometryCallback(trainer))
    return run.make_job(
        args, trainer, splits, TASK, "handwritten digits of scikit-learn", classifies_rows=True,
        rows=rows, image_column_name=image_column, label_column_name="labels",
    )  # fmt: skip


def _load_images(args: ImageClassificationArguments, config: PretrainedConfig | None) -> tuple[Splits, str, list[str]]:
    splits = load_splits(args, digits, partial(_load_folder, predicts=args.predicts))
    first, rows = first_split(splits)
    label_column = find_label_column(rows, args.label_column_name, first)
    column = find_column(
        rows, "image_column_name", args.image_column_name, fits=holds_images, names=IMAGE_NAMES, taken=[label_column],
        split=first,
    )  # fmt: skip
    report_columns(rows, [column, label_column])
    splits = load_images(args, splits, column)
    splits, names = classification_splits(args, splits, [column], label_column, config)
    return splits, column, names


def _load_folder(argument: str, path: str, predicts: bool) -> Dataset:
    """A folder of classes; for `--do_predict`, the test data may also be a folder of images."""
    is_flat = os.path.isdir(path) and not any(entry.is_dir() for entry in os.scandir(path))
    return (load_image_folder if predicts and argument == "test_dir" and is_flat else load_class_folders)(argument, path)


def _default_config() -> PretrainedConfig:
    return ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic", num_channels=3
    )


def _image_processor(args: ImageClassificationArguments, config: PretrainedConfig) -> Any:
    processor, _ = named_processor(args)
    if processor is not None:
        return processor
    of_timm = getattr(config, "pretrained_cfg", {}).get("input_size", [])[-2:]
    size = args.image_size or getattr(config, "image_size", None) or of_timm or DEFAULT_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return ViTImageProcessorPil(size={"height": height, "width": width})  # the one that does not need torchvision


def _augmentation(args: ImageClassificationArguments, processor: Any) -> Augmentation:
    name = args.augmentation or ("crop_flip" if data_flags(args) else "none")
    return Augmentation(name, *normalization(processor), args.random_erasing)


def to_pixels(
    batch: dict[str, list[Any]], column: str, processor: Any, augmentation: Augmentation | None = None
) -> dict[str, Any]:
    """The model's inputs for a batch of rows: a transform of `datasets`."""
    inputs = processor([to_rgb(image) for image in batch[column]], return_tensors="pt")
    if augmentation is not None:
        inputs["pixel_values"] = augmentation(inputs["pixel_values"])
    return {**inputs, "labels": batch["labels"]}


def _collator(args: ImageClassificationArguments, classes: int) -> Any:
    if args.mixup_alpha == args.cutmix_alpha == 0:
        return default_data_collator
    if args.mixup_mode not in MODES:
        raise ValueError(f"mixup_mode must be one of {', '.join(MODES)}, got {args.mixup_mode!r}")
    for name in ("mixup_prob", "mixup_switch_prob"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {getattr(args, name)}")
    return MixupCollator(
        classes, args.mixup_alpha, args.cutmix_alpha, args.mixup_prob, args.mixup_switch_prob, args.mixup_mode
    )


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train image-classification`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
