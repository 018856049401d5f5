"""What is known of a run, as plain data in `run.json` beside the model: all that a card is written from."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from maxsup_hf.output.files import plain
from maxsup_hf.output.versions import versions

RECORD = "run.json"
HYPERPARAMETERS = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "optim",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "data_seed", "bf16", "fp16", "tf32",
    "gradient_checkpointing", "torch_compile", "neftune_noise_alpha", "fsdp", "deepspeed",
)  # fmt: skip


def record(trainer: Any, **about: Any) -> dict[str, Any]:
    """Gather what a Trainer knows; what it does not know is left out.

    Args:
        trainer: with a `loss_function`. What it says was trained, `trained_loss` and `trained_class_weights`, comes first:
            where `trained_loss` is `None` nothing was trained, and there is no `loss`.
        **about: what the caller knows of data and model: `tasks`, `dataset`, `dataset_tags` (a Hub id), `dataset_args`,
            `language`, `license`, `tags`, `model_name`, `finetuned_from`.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    hyperparameters = {name: plain(getattr(args, name, None)) for name in HYPERPARAMETERS}
    state = trainer.state
    found = {
        "loss": _loss(trainer, model),
        "model": {
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "base_model": (given := about.pop("finetuned_from", None)) or _base_model(model),
            "finetuned": bool(given or _source(model)),
            "adapter": hasattr(model, "peft_config"),
        },
        **{key: value for key, value in about.items() if value},
        "hyperparameters": {key: value for key, value in hyperparameters.items() if value not in (None, False, "", [], {})},
        "devices": {"count": args.world_size * max(1, args.n_gpu), "kind": _device(args.device)},
        "versions": versions(),
        "steps": state.global_step,
        "epochs": state.epoch,
        "results": _last_evaluation(state.log_history),
        "command": _command(),
    }
    if args.hub_model_id:
        found["repo_id"] = getattr(trainer, "hub_model_id", None) or args.hub_model_id
    runtime = next((entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry), None)
    if args.resume_from_checkpoint:
        runtime = None  # of the last part alone
    return {key: value for key, value in (found | {"train_seconds": runtime}).items() if value not in (None, {}, [])}


def load_record(folder: str | Path) -> dict[str, Any]:
    """What was recorded, with the newest results of the folder.

    Raises:
        ValueError: the folder has no record.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {RECORD}: a card is written from it. It is there after a training with MaxSupTrainer or "
            "`maxsup-hf train`, once a card was made (Trainer.create_model_card)"
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    results = Path(folder) / "all_results.json"
    if results.is_file():
        found["results"] = found.get("results", {}) | _measured(json.loads(results.read_text(encoding="utf-8")))
    return found


def _loss(trainer: Any, model: Any) -> dict[str, Any] | None:
    """The loss that was trained, with its class weights; `None` where nothing was."""
    loss = getattr(trainer, "trained_loss", trainer.loss_function)
    if loss is None:
        return None
    weights = getattr(trainer, "trained_class_weights", None)
    return {
        "name": loss.spec.name,
        "kwargs": {key: value for key, value in loss.kwargs.items() if value is not None},
        "formula": loss.spec.description,
        "citation": loss.spec.citation,
    } | ({} if weights is None else {"class_weights": _class_weights(weights.tolist(), model)})


def _class_weights(weights: list[float], model: Any) -> dict[str, float]:
    """Class name, or its number where it has none, -> weight in six digits."""
    labels = {int(k): str(name) for k, name in (getattr(getattr(model, "config", None), "id2label", None) or {}).items()}
    names = [labels.get(k, str(k)) for k in range(len(weights))]
    if len(labels) != len(weights) or len(set(names)) < len(names):
        names = [str(k) for k in range(len(weights))]
    return {name: float(f"{weight:.6g}") for name, weight in zip(names, weights, strict=True)}


def _last_evaluation(history: list[dict[str, Any]]) -> dict[str, float]:
    """The last evaluation's metrics; a callback's geometry of it is an entry of its own."""
    found: dict[str, float] = {}
    for sign in ("eval_", "feature_"):
        entries = [entry for entry in history if any(key.startswith(sign) for key in entry)]
        found |= _measured(entries[-1]) if entries else {}
    return found


def _measured(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics of evaluation and test, without clocks and counts; NumPy numbers become Python's. `FeatureGeometryCallback`
    gives the evaluation data's no prefix."""
    left_out = ("_runtime", "_per_second", "_samples", "_loss", "_time")
    metrics = {f"eval_{key}" if key.startswith("feature_") else key: value for key, value in metrics.items()}
    return {
        key: float(value)
        for key, value in metrics.items()
        if key.startswith(("eval_", "test_")) and not key.endswith(left_out) and isinstance(value, (int, float))
    }


def _source(model: Any) -> str:
    """Where the weights came from: a Hub id or a folder; empty where that is not known."""
    return getattr(getattr(model, "config", None), "_name_or_path", "") or ""


def _base_model(model: Any) -> str | None:
    """The Hub id that the model was fine-tuned from; a folder of this machine means nothing elsewhere."""
    name = _source(model)
    return name if name and not os.path.exists(name) else None


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def _command() -> str | None:
    """The command line, where it was `maxsup-hf train` or one of its scripts, without anything like a token."""
    program = Path(sys.argv[0]).name
    words, before = [], ""
    for word in sys.argv[1:]:
        if "--resume_from_checkpoint" not in (before, word.partition("=")[0]):  # who does the training again begins it
            words.append("<token>" if before.endswith("token") else word)
        before = word if word.startswith("--") and "=" not in word else ""
    words = [word.partition("=")[0] + "=<token>" if word.startswith("--hub_token=") else word for word in words]
    if program == "maxsup-hf" or "maxsup_hf/__main__" in sys.argv[0]:
        return shlex.join(["maxsup-hf", *words])
    if "maxsup_hf/scripts" in sys.argv[0]:
        return shlex.join(["maxsup-hf", "train", Path(program).stem.replace("_", "-"), *words])
    return None
