"""The models that `maxsup-hf analyze` looks at: loading, their training's record, and their inputs."""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import hf_hub_download
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    default_data_collator,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from maxsup_hf.analysis.data import IMAGE, TEXT, Data
from maxsup_hf.analysis.photos import Photos
from maxsup_hf.analysis.store import data_fingerprint
from maxsup_hf.data.arguments import DataArguments
from maxsup_hf.data.columns import read_column
from maxsup_hf.data.files import loading
from maxsup_hf.data.images import to_rgb
from maxsup_hf.hub.own_code import names_of_its_class
from maxsup_hf.hub.record import RECORD
from maxsup_hf.scripts.common.models import hub_options, load_config
from maxsup_hf.scripts.common.tokenizers import build_tokenizer, max_length
from maxsup_hf.scripts.image_classification import to_pixels
from maxsup_hf.scripts.text_classification import TextClassificationArguments, tokenize

HEADS: dict[str, tuple[Any, Any, str]] = {
    IMAGE: (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "ForImageClassification"),
    TEXT: (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "ForSequenceClassification"),
}


def _script_arguments(source: str, args: argparse.Namespace) -> TextClassificationArguments:
    return TextClassificationArguments(
        model_name_or_path=source,
        model_revision=args.model_revision,
        trust_remote_code=args.trust_remote_code,
        tokenizer_name=args.tokenizer_name,
        max_seq_length=args.max_seq_length,
    )


def load_model(source: str, args: argparse.Namespace) -> tuple[Any, str]:
    """A model on its device, and its task.

    Raises:
        ValueError, OSError: it cannot be loaded, is not a classifier, or lacks weights.
    """
    if os.path.isfile(os.path.join(source, "adapter_config.json")):
        raise ValueError(f"MODEL: {source!r} contains an adapter; merge it into its model (merge_and_unload) and save that")
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise ValueError(
            f"MODEL: {source!r} contains no model (no config.json); give the output_dir of a training, or a Hub id"
        )
    options = _script_arguments(source, args)
    try:
        config = load_config(options)
    except ValueError as error:
        no_folder = "" if os.path.exists(source) else "; there is no folder of this name either"
        raise ValueError(f"MODEL: {str(error).removeprefix('model_name_or_path: ')}{no_folder}") from error
    assert config is not None
    architectures = names_of_its_class(config)
    task = next((task for task in HEADS for name in architectures if _serves(name, task)), None)
    if task is None:
        raise ValueError(
            f"MODEL: {source!r} has no classifier layer: it was saved as {', '.join(architectures) or 'no architecture'}; "
            "give an image classifier (…ForImageClassification) or a text classifier (…ForSequenceClassification)"
        )
    with loading("MODEL", source):
        model, info = HEADS[task][0].from_pretrained(
            source, dtype="float32", output_loading_info=True, **hub_options(options)
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"MODEL: {source!r} lacks weights, which would be random: {', '.join(missing[:5])}; train it first")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(args.device or accelerator or "cpu").eval(), task


def _serves(architecture: str, task: str) -> bool:
    _, mapping, suffix = HEADS[task]
    known = {name for names in mapping.values() for name in ([names] if isinstance(names, str) else names)}
    return architecture in known or architecture.endswith(suffix)


def training_record(source: str, args: argparse.Namespace) -> dict[str, Any]:
    """The `run.json` of a model's training; empty if there is none."""
    return json.loads(_training_file(source, RECORD, args) or "{}")


def held_out_share(source: str, args: argparse.Namespace) -> float | None:
    """The share of its training data that a model's training held out for validation; `None` if its flags are not known."""
    try:
        flags = yaml.safe_load(_training_file(source, "config.yaml", args) or "")
    except yaml.YAMLError:
        return None
    share = flags.get("train_val_split", DataArguments.train_val_split) if isinstance(flags, dict) else None
    return share if isinstance(share, float) else None


def _training_file(source: str, name: str, args: argparse.Namespace) -> str | None:
    """The text of a file that `maxsup-hf train` leaves beside a model; `None` if there is none."""
    path = Path(source) / name
    if not os.path.isdir(source):
        try:
            path = Path(hf_hub_download(source, name, revision=args.model_revision))
        except (OSError, ValueError):  # most models on the Hub have none
            return None
    return path.read_text(encoding="utf-8") if path.is_file() else None


def model_inputs(task: str, model: Any, source: str, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Subject` that feed it: the data as this model takes them."""
    options = _script_arguments(source, args)
    if task == TEXT:
        tokenizer = build_tokenizer(options, model.config, ())
        length = max_length(options, model.config, tokenizer)
        dataset = tokenize(data.dataset, data.columns, tokenizer, length)
        key = data_fingerprint((name, read_column(dataset, name)) for name in dataset.column_names)
        return {"dataset": dataset, "collate": DataCollatorWithPadding(tokenizer), "data_key": key}
    argument = "image_processor_name" if args.image_processor_name else "MODEL"
    with loading(argument, args.image_processor_name or source):
        processor = AutoImageProcessor.from_pretrained(args.image_processor_name or source, **hub_options(options))
    columns = ((name, read_column(data.dataset, name)) for name in data.dataset.column_names)
    key = data_fingerprint(columns, type(processor).__name__, processor.to_json_string())
    scale = (processor.image_mean, processor.image_std) if getattr(processor, "do_normalize", False) else None
    column = data.columns[0]
    photos = Photos(
        image=lambda row: to_rgb(data.dataset[row][column]),
        pixels=lambda image: processor([image], return_tensors="pt")["pixel_values"][0],
    )
    return {
        "dataset": data.dataset.with_transform(partial(to_pixels, column=column, processor=processor)),
        "collate": default_data_collator, "data_key": key, "pixel_scale": scale, "photos": photos,
    }  # fmt: skip
