"""Train or fine-tune a model that predicts the class of every pixel.

Without arguments: a tiny SegFormer on pictures of handwritten digits. Nothing is downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    PretrainedConfig,
    SegformerConfig,
    SegformerImageProcessorPil,
    default_data_collator,
)

from maxsup_hf.data.arguments import data_flags, flag
from maxsup_hf.data.builtin_scenes import SCENE_CLASSES, digit_scenes
from maxsup_hf.data.columns import identifier_columns, report_columns
from maxsup_hf.data.images import as_images, to_rgb
from maxsup_hf.data.labels import pretrained_classes, set_aside_unlabelled
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.data.masks import PIXELS, check_masks, find_mask_columns, load_pair_folder, to_array
from maxsup_hf.data.splits import divide, hold_out_and_limit, limit_rows
from maxsup_hf.metrics import ClassScores, confusion_matrix, mean_iou, per_class, pixel_accuracy
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.image_processors import ImageArguments, load_images, named_processor, transform_on_reading
from maxsup_hf.scripts.common.models import build_model, load_config, set_classes
from maxsup_hf.trainer.trainer import MaxSupTrainer

TASK = "semantic-segmentation"
DEFAULT_SIZE = 40  # pixels, for the default model

FROM_SCRATCH = {
    **recipes.FROM_SCRATCH,
    "logging_steps": 20,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 32,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
}
FINE_TUNING = {
    **recipes.FINE_TUNING,
    "logging_steps": 20,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "learning_rate": 6e-5,
}
RECIPES = recipes.Recipes(FROM_SCRATCH, FROM_SCRATCH, FINE_TUNING)


@dataclass
class SemanticSegmentationArguments(ImageArguments):
    """Flags of semantic segmentation."""

    train_dir: str | None = flag("Training data: a folder with the subfolders images and masks, whose file names agree.")
    label_column_name: str | None = flag(
        "Column of the masks, or of paths to them: images of one channel whose values are classes, or 255 for pixels to "
        "ignore (default: found by its type or name)."
    )
    class_names: str | None = flag(
        "Comma-separated names of the classes 0, 1, … (default: one class for each value in the training masks)."
    )


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(SemanticSegmentationArguments, argv, TASK, RECIPES, classifies=True)
    config = load_config(args) or _default_config()
    # UPerNet has another name for it; the Trainer, which counts the pixels of a batch, reads the usual one.
    ignore_index = getattr(config, "semantic_loss_ignore_index", getattr(config, "loss_ignore_index", 255))
    config.semantic_loss_ignore_index = ignore_index
    with training_args.main_process_first(desc="loading the data"):
        splits, columns, names, pixels = _load_images(args, config, ignore_index)
    config = set_classes(config, names)
    model = build_model(AutoModelForSemanticSegmentation, config, args, training_args.seed)
    processor = _image_processor(args)
    transform = partial(_to_pixels, columns=columns, processor=processor)
    rows = splits
    splits = transform_on_reading(rows, transform, training_args)
    training_args.batch_eval_metrics = True  # the predictions for a whole data set would fill the memory
    trainer = MaxSupTrainer(
        model,
        training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        data_collator=default_data_collator,
        compute_metrics=SegmentationMetrics(names, ignore_index),
        preprocess_logits_for_metrics=predicted_classes,
    )
    return run.make_job(
        args, trainer, splits, "image-segmentation", "scenes of scikit-learn's digits",
        pixels=pixels, rows=rows, image_column_name=columns[0],
    )  # fmt: skip


# ---- data ----


def _load_images(
    args: SemanticSegmentationArguments, config: PretrainedConfig, ignore_index: int
) -> tuple[Splits, tuple[str, str], list[str], list[int]]:
    """The splits, the columns of images and masks, the names of the classes, and the number of pixels of each, which is
    empty if the masks were not read."""
    splits = load_splits(args, digit_scenes, load_pair_folder)
    first, rows = first_split(splits)
    image, mask = find_mask_columns(rows, args.image_column_name, args.label_column_name, first)
    report_columns(rows, [image, mask])
    splits = load_images(args, splits, image)
    splits = set_aside_unlabelled(splits, args, mask, {image: image})
    for split, dataset in splits.items():
        masks = as_images(dataset, mask, "label_column_name", split, getattr(args, f"{split}_file"))
        ids = identifier_columns(masks, [image, mask]) if split == "test" else []
        splits[split] = masks.select_columns([image, mask, *ids])
    pretrained = pretrained_classes(config)
    names, source = _class_names(args), "class_names"
    if not args.needs_training_data:
        if args.class_names is not None and len(names) != len(pretrained):
            raise ValueError(f"class_names has {len(names)} names, and the model {len(pretrained)} classes; leave it out")
        names, source = names or pretrained, "the model"
    if args.skip_image_check and names:
        return hold_out_and_limit(splits, args), (image, mask), names, []
    pixels, count = check_masks(splits, image, mask, ignore_index, len(names), source if names else "")
    if not names:
        names = pretrained if len(pretrained) == count else [str(i) for i in range(count)]
    pixels = limit_rows(divide(pixels, args.train_val_split), args)  # the same rows
    counts = np.sum(first_split(pixels)[1][PIXELS], axis=0).tolist()
    return hold_out_and_limit(splits, args), (image, mask), names, counts


def _class_names(args: SemanticSegmentationArguments) -> list[str]:
    """The names that are known before the masks are read; empty if there are none."""
    if args.class_names is None:
        return [] if data_flags(args) else list(SCENE_CLASSES)
    names = [name.strip() for name in args.class_names.split(",")]
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"class_names must be different names, comma-separated, got {args.class_names!r}")
    return names


def _to_pixels(batch: dict[str, list[Any]], columns: tuple[str, str], processor: Any) -> dict[str, Any]:
    image, mask = columns
    images = [to_rgb(picture) for picture in batch[image]]
    masks = [to_array(picture).astype(np.uint8) for picture in batch[mask]]
    return dict(processor(images, segmentation_maps=masks, return_tensors="pt"))


# ---- model and metrics ----


def _default_config() -> PretrainedConfig:
    """A tiny SegFormer with half the usual strides, for small images."""
    return SegformerConfig(
        num_encoder_blocks=3,
        depths=[1, 1, 1],
        sr_ratios=[4, 2, 1],
        hidden_sizes=[32, 64, 128],
        patch_sizes=[5, 3, 3],
        strides=[2, 2, 2],
        num_attention_heads=[1, 2, 4],
        mlp_ratios=[2, 2, 2],
        decoder_hidden_size=64,
        drop_path_rate=0.0,
    )


def _image_processor(args: SemanticSegmentationArguments) -> Any:
    processor, argument = named_processor(args)
    if processor is None:
        pixels = args.image_size or DEFAULT_SIZE
        size = {"height": pixels, "width": pixels}
        try:
            return SegformerImageProcessorPil(size=size)  # the one that does not need torchvision
        except ImportError as error:
            raise ValueError(
                "image_processor_name: before transformers 5.21 the default one, SegFormer's, needs torchvision; install "
                "torchvision or a newer transformers (Python 3.11), or name a processor that takes masks"
            ) from error
    if "segmentation_maps" not in inspect.signature(processor.preprocess).parameters:
        raise ValueError(
            f"{argument}: the image processor of {getattr(args, argument)!r}, {type(processor).__name__}, does not take "
            "masks; name one of a segmentation model with --image_processor_name"
        )
    processor.do_reduce_labels = False  # it would shift the classes, which were checked as they are
    return processor


def predicted_classes(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """`preprocess_logits_for_metrics`: turn (N, K, h, w) logits, scaled up to the masks, into (N, H, W) classes."""
    logits = run.only_logits(outputs, labels)
    scaled = torch.nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    return scaled.argmax(1)


class SegmentationMetrics:
    """`compute_metrics` that sums the confusion matrix over the batches of an evaluation.

    Args:
        names: of the classes.
        ignore_index: value of the pixels that are ignored.

    Attributes:
        scores: precision, recall, F1 and support of each class, in pixels, of the last evaluation.
    """

    def __init__(self, names: Sequence[str], ignore_index: int):
        self.names, self.ignore_index = names, ignore_index
        self.confusion = np.zeros((len(names), len(names)), np.int64)
        self.scores: list[ClassScores] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        predictions, labels = (torch.as_tensor(x).cpu().numpy() for x in (prediction.predictions, prediction.label_ids))
        self.confusion += confusion_matrix(predictions, labels, len(self.names), self.ignore_index)
        if not compute_result:
            return {}
        total, self.confusion = self.confusion, np.zeros_like(self.confusion)  # start over for the next evaluation
        label, predicted = np.indices(total.shape).reshape(2, -1)
        self.scores = per_class(label, predicted, self.names, total.reshape(-1))
        return {"mean_iou": mean_iou(total), "pixel_accuracy": pixel_accuracy(total)}


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train semantic-segmentation`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
