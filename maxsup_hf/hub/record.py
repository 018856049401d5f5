"""The record of a run, `run.json` beside the model, from which the model card is written."""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import torch

from maxsup_hf.hub.base_model import hub_base_model
from maxsup_hf.hub.command import with_base_model, with_placeholders, without_resuming
from maxsup_hf.hub.example import example_in_training
from maxsup_hf.hub.own_code import base_model, how_to_load
from maxsup_hf.hub.training_log import training_log
from maxsup_hf.hub.values import as_list
from maxsup_hf.output.files import plain, write_json
from maxsup_hf.output.private import without_host
from maxsup_hf.output.secrets import masked_words
from maxsup_hf.output.versions import versions
from maxsup_hf.output.weights import weight_files

RECORD = "run.json"
NOT_KEPT = "weights_not_kept.txt"  # in the folder of a run whose weights were removed afterwards, it says why
SPLITS = ("train", "eval", "test")
HYPERPARAMETERS = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "optim",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "data_seed", "bf16", "fp16", "tf32",
    "gradient_checkpointing", "torch_compile", "neftune_noise_alpha", "fsdp", "deepspeed",
)  # fmt: skip


def record(trainer: Any, **about: Any) -> dict[str, Any]:
    """What a Trainer knows about its run, as plain data. Unknown entries are left out.

    Args:
        trainer: a Trainer with a `loss_function`. If it has a `trained_loss`, the loss that actually ran, that is recorded;
            `None` means that nothing was trained, and there is no `loss` entry.
        **about: what the caller knows about data and model: `tasks`, `dataset`, `dataset_tags` (Hub ids), `dataset_args`,
            `language`, `license`, `tags`, `model_name`, `finetuned_from`.
    """
    args, state = trainer.args, trainer.state
    model = trainer.accelerator.unwrap_model(trainer.model)
    found: dict[str, Any] = {
        "loss": _loss(trainer, model),
        "model": _model(model, about.pop("finetuned_from", None)),
        "processor": trainer.processing_class is not None,
        "chat": bool(getattr(trainer.processing_class, "chat_template", None)),
        **{key: value for key, value in about.items() if value},
        "rows": {"train": _rows(trainer.train_dataset), "eval": _rows(trainer.eval_dataset)},
        "classes": _classes(model),
        "hyperparameters": _hyperparameters(args),
        "devices": {"count": args.world_size * max(1, args.n_gpu), "kind": _device(args.device)},
        "versions": versions(),
        "steps": state.global_step,
        "epochs": state.epoch,
        "example": example_in_training(trainer, model, next(iter(as_list(about.get("tasks"))), None)),
        "log": training_log(state.log_history),
        "results": _last_evaluation(state.log_history),
        "command": _command(),
    }
    if found["command"] and found["model"]["base_model"]:
        found["command"] = with_base_model(found["command"], found["model"]["base_model"])
    repository = getattr(trainer, "_pushed_to", None)  # of a push without `hub_model_id`
    if args.hub_model_id:
        repository = getattr(trainer, "hub_model_id", None) or args.hub_model_id
    if repository:
        found["repo_id"] = repository
    runtimes = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    if runtimes and not args.resume_from_checkpoint:  # a resumed run knows the time since it was resumed only
        found["train_seconds"] = runtimes[-1]
    found["rows"] = {split: rows for split, rows in found["rows"].items() if rows is not None}
    return {key: value for key, value in found.items() if value not in (None, {}, [])}


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record in a folder.

    Raises:
        ValueError: the folder has no record, or it is damaged.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {RECORD}, from which the card is written: give the output_dir of `maxsup-hf train`, or call "
            "create_model_card() of a MaxSupTrainer first"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not the record of a run")
    return found


def write_record(folder: str | Path, found: Mapping[str, Any]) -> None:
    """Write the record into a folder."""
    write_json(Path(folder) / RECORD, found)


def load_record(folder: str | Path) -> dict[str, Any]:
    """The record in a folder, updated with the results and the numbers of rows in its `all_results.json`.

    Raises:
        ValueError: the folder has no record, or one that names no model.
    """
    found = read_record(folder)
    if not isinstance(found.get("model"), dict):
        raise ValueError(f"{Path(folder) / RECORD} is not the record of a run: it names no model")
    results = Path(folder) / "all_results.json"
    if results.is_file():
        values = json.loads(results.read_text(encoding="utf-8"))
        found["results"] = found.get("results", {}) | _measured(values)
        rows = {split: values[f"{split}_samples"] for split in SPLITS if f"{split}_samples" in values}
        found["rows"] = found.get("rows", {}) | rows
    return found


def why_no_weights(folder: str | Path) -> str | None:
    """Why the folder of a run has no weights any more, or `None`."""
    note = Path(folder) / NOT_KEPT
    if not note.is_file() or weight_files(folder):
        return None
    return note.read_text(encoding="utf-8").strip()


def _model(model: Any, finetuned_from: str | None) -> dict[str, Any]:
    source = finetuned_from or _source(model)
    base = base_model(model)
    found: dict[str, Any] = {
        **how_to_load(base),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "base_model": hub_base_model(source),
        "finetuned": bool(source),
        "adapter": hasattr(model, "peft_config"),
    }
    if found["adapter"]:
        adapter = next(iter(model.peft_config.values()))
        found["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found["adapter_type"] = plain(adapter.peft_type)
        found["adapter_task"] = plain(adapter.task_type)
    return found


def _rows(dataset: Any) -> int | None:
    if isinstance(dataset, dict) or not isinstance(dataset, Sized):
        return None
    return len(dataset)


def _classes(model: Any) -> list[str] | None:
    """The names of the classes of a classifier. Classes without names are numbered."""
    base = base_model(model)
    names = getattr(getattr(base, "config", None), "id2label", None)
    loaded = how_to_load(base)
    if not names or not re.search("Classification|Segmentation", loaded["class"] + loaded.get("auto_class", "")):
        return None
    return [str(index) if name == f"LABEL_{index}" else str(name) for index, name in names.items()]


def _hyperparameters(args: Any) -> dict[str, Any]:
    values = {name: plain(getattr(args, name, None)) for name in HYPERPARAMETERS}
    if isinstance(values["deepspeed"], str):
        values["deepspeed"] = Path(values["deepspeed"]).name
    return {name: value for name, value in values.items() if value is not False and value not in (None, "", [], {})}


def _loss(trainer: Any, model: Any) -> dict[str, Any] | None:
    """The loss that was trained, with its class weights; `None` if nothing was trained."""
    loss = getattr(trainer, "trained_loss", trainer.loss_function)
    if loss is None:
        return None
    found: dict[str, Any] = {
        "name": loss.spec.name,
        "kwargs": {key: value for key, value in loss.kwargs.items() if value is not None},
        "formula": loss.spec.description,
        "citation": loss.spec.citation,
    }
    weights = getattr(trainer, "trained_class_weights", None)
    if weights is not None:
        found["class_weights"] = _class_weights(weights.tolist(), model)
    return found


def _class_weights(weights: list[float], model: Any) -> dict[str, float]:
    """Class name -> weight in six digits. Classes go by their index if the model does not name each of them differently."""
    id2label = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = {int(index): str(name) for index, name in id2label.items()}
    indices = range(len(weights))
    if sorted(names) != list(indices) or len(set(names.values())) < len(names):
        names = {index: str(index) for index in indices}
    return {names[index]: float(f"{weight:.6g}") for index, weight in enumerate(weights)}


def _last_evaluation(history: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics of the last evaluation. `FeatureGeometryCallback` logs its own in an entry that follows."""
    found: dict[str, float] = {}
    for prefix in ("eval_", "feature_"):
        entries = [entry for entry in history if any(key.startswith(prefix) for key in entry)]
        if entries:
            found |= _measured(entries[-1])
    return found


def _measured(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics of evaluation and test, without run times and counts.

    The keys of `FeatureGeometryCallback` have no prefix for the evaluation data; they get it here.
    """
    left_out = ("_runtime", "_per_second", "_samples", "_loss", "_time", "_num_tokens")
    found = {}
    for key, value in metrics.items():
        name = f"eval_{key}" if key.startswith("feature_") else key
        if name.startswith(("eval_", "test_")) and not name.endswith(left_out) and isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def _source(model: Any) -> str:
    """Where the weights were loaded from: a Hub id or a folder, or empty if unknown."""
    return getattr(getattr(model, "config", None), "_name_or_path", "") or ""


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return device.type


def _command() -> str | None:
    """The command line of `maxsup-hf` or one of its scripts; `None` in any other program."""
    program = Path(sys.argv[0])
    words = [without_host(word) for word in with_placeholders(masked_words(without_resuming(sys.argv[1:])))]
    if program.name == "maxsup-hf" or "maxsup_hf/__main__" in sys.argv[0]:
        return shlex.join(["maxsup-hf", *words])
    if "maxsup_hf/scripts" in sys.argv[0]:
        return shlex.join(["maxsup-hf", "train", program.stem.replace("_", "-"), *words])
    return None
