"""What a run is about to do, in a few lines."""

from __future__ import annotations

import math
from typing import Any

from maxsup_hf.data.label_counts import count_classes
from maxsup_hf.output.messages import listed
from maxsup_hf.scripts.common.job import Job
from maxsup_hf.trainer.class_weights import CLASSIFYING_HEADS
from maxsup_hf.trainer.validation import ignored_label

SHOWN_CLASSES = 20


def describe(job: Job, before: str = "") -> None:
    """Print which model is trained, how and on which data; of a run that only evaluates, which model is evaluated."""
    trainer = job.trainer
    if not trainer.is_world_process_zero():
        return
    splits = {"training": trainer.train_dataset, "validation": trainer.eval_dataset, "test": job.test_dataset}
    splits = {split: dataset for split, dataset in splits.items() if dataset is not None}
    (split, first), *others = splits.items()
    rows = f"{len(first):,} rows for {split}" + "".join(f", {len(dataset):,} for {name}" for name, dataset in others)
    loss = f", loss {trainer.loss_function}" if trainer.args.do_train else ""
    print(f"{before}{_model(job)} on {rows}{loss}")
    print(_training(trainer) if trainer.args.do_train else "nothing is trained (do_train is false)")
    head = getattr(trainer.model, "loss_type", None)
    if head in CLASSIFYING_HEADS:
        print(_classes(job, first))


def _model(job: Job) -> str:
    model, processor = job.trainer.model, job.trainer.processing_class
    weights = f"weights of {model.name_or_path}" if job.pretrained else "random weights (--model_name_or_path fine-tunes)"
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = "" if trained == model.num_parameters() else f", {trained:,} of them trained"
    size = image_size(processor)
    images = "" if size is None else f"; images of {size}"
    return f"{type(model).__name__} ({model.num_parameters():,} parameters{frozen}; {weights}{images})"


def image_size(processor: Any) -> str | None:
    """What size an image processor makes images, in words; `None` if it says nothing about it."""
    config = getattr(processor, "data_config", None)  # of timm
    if config:
        height, width = config["input_size"][-2:]
        return f"{height} x {width} pixels"
    crops = getattr(processor, "do_center_crop", False)
    size = dict(getattr(processor, "crop_size" if crops else "size", None) or {})
    if not size:
        return None
    if size.get("height"):
        return f"{size['height']} x {size['width']} pixels"
    return ", ".join(f"{name.replace('_', ' ')} {pixels} pixels" for name, pixels in size.items() if pixels)


def _training(trainer: Any) -> str:
    args = trainer.args
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return (
        f"{trainer.accelerator.distributed_type.value}, {args.world_size} process(es) on {args.device.type} x batch "
        f"{args.train_batch_size} x accumulation {args.gradient_accumulation_steps} = {batch} rows a step, "
        f"mixed precision {trainer.accelerator.mixed_precision}, to {args.output_dir}\n"
        f"learning rate {args.learning_rate:g}, {_duration(args, len(trainer.train_dataset))}"
    )


def _duration(args: Any, rows: int) -> str:
    """The length of the training, as the Trainer computes it."""
    share = rows / (args.train_batch_size * args.world_size)
    batches = max(1, math.floor(share) if args.dataloader_drop_last else math.ceil(share))
    steps = math.ceil(batches / args.gradient_accumulation_steps)  # of an epoch
    if args.max_steps > 0:
        return f"{args.max_steps:,} steps ({args.max_steps / steps:.2g} epochs)"
    return f"{args.num_train_epochs:g} epochs ({math.ceil(args.num_train_epochs * steps):,} steps)"


def _classes(job: Job, dataset: Any) -> str:
    """The classes, with the number of rows, words or pixels of each."""
    names = {k: " ".join(name.split()) for k, name in job.trainer.model.config.id2label.items()}  # each on one line
    if job.pixels == []:
        listing = listed(list(names.values()), SHOWN_CLASSES)
        return f"{len(names)} classes: {listing}\npixels of each class: not counted (skip_image_check)"
    counts = job.pixels or count_classes(dataset, len(names), ignored_label(job.trainer.model)).tolist()
    rarest = min(names, key=lambda k: counts[k])
    listing = listed([f"{name} ({counts[k]:,})" for k, name in names.items()], SHOWN_CLASSES)
    unit = ", in pixels" if job.pixels else ""
    return f"{len(names)} classes{unit}: {listing}\nrarest class: {names[rarest]} ({counts[rarest]:,})"
