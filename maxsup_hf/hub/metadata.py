"""The metadata of a model card: the YAML by which the Hub lists, filters and links a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from maxsup_hf.hub.base_model import is_hub_id
from maxsup_hf.hub.values import as_list, as_text, is_finite

SPLITS = {"eval": "validation", "test": "test"}
GENERATED = ("model-index", "metrics")  # those of the run, if it has results, whatever a card said before


def metadata(found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The metadata of a run. What is unknown is left out.

    Args:
        found: the record of the run.
        folder: names the model if nothing else does.
    """
    model, loss = found["model"], found.get("loss")
    tasks = as_list(found.get("tasks"))
    results = _results(found, tasks[0]) if tasks else []
    metrics = [key.partition("_")[2] for key, value in found.get("results", {}).items() if is_finite(value)]
    tags = ["maxsup", *loss["name"].split("+")] if loss else []
    tags += found.get("tags") or []
    base_model = model["base_model"] if is_hub_id(model.get("base_model")) else None
    relation = None
    if base_model:
        relation = "adapter" if model.get("adapter") else "finetune"
    data = ModelCardData(
        language=found.get("language"),
        license=found.get("license"),
        library_name="peft" if model.get("adapter") else "transformers",
        pipeline_tag=tasks[0] if tasks else None,
        base_model=base_model,
        base_model_relation=relation,
        datasets=hub_datasets(found) or None,
        metrics=list(dict.fromkeys(metrics)) or None,
        tags=list(dict.fromkeys(tags + tasks[1:])) or None,
        model_name=model_name(found, folder) if results else None,
        eval_results=results or None,
    )
    return {key: value for key, value in data.to_dict().items() if value is not None}


def merged(generated: Mapping[str, Any], existing: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata in which existing values take precedence over generated ones, and given ones over both. Results are those of
    the run, if it has any, and the tags are those of both."""
    replaced = [key for key in GENERATED if key in generated]
    kept = {key: value for key, value in without_paths(existing).items() if key not in replaced}
    found = {**generated, **kept, **given}
    tags = [*kept.get("tags", []), *generated.get("tags", [])]
    return found | {"tags": list(dict.fromkeys(tags))} if tags else found


def without_paths(existing: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without the path of a local base model, which PEFT writes and the Hub rejects."""
    found = dict(existing)
    if isinstance(found.get("base_model"), str) and not is_hub_id(found["base_model"]):
        del found["base_model"]
    prefix = "base_model:adapter:"
    tags = [
        tag for tag in found.pop("tags", None) or [] if not tag.startswith(prefix) or is_hub_id(tag.removeprefix(prefix))
    ]
    return found | {"tags": tags} if tags else found


def model_name(found: Mapping[str, Any], folder: Path) -> str:
    """The title of the card."""
    return found.get("model_name") or str(found.get("repo_id", folder.absolute().name)).rpartition("/")[2]


def data_name(found: Mapping[str, Any]) -> str:
    """The names of the data sets of a run, without the folders of those that are paths."""
    return as_text([PurePath(name).name if os.path.isabs(name) else name for name in as_list(found.get("dataset"))])


def hub_datasets(found: Mapping[str, Any]) -> list[str]:
    """The data sets of a run that are on the Hub."""
    return [name for name in as_list(found.get("dataset_tags")) if is_hub_id(name)]


def _results(found: Mapping[str, Any], task: str) -> list[EvalResult]:
    """The results that are numbers, of a run whose data have a name."""
    if not found.get("dataset"):
        return []
    names = hub_datasets(found)
    kind = names[0] if len(names) == 1 else "local"  # results on several data sets together belong to none of them
    settings = found.get("dataset_args")
    results = []
    for key, value in found.get("results", {}).items():
        split, _, metric = key.partition("_")
        if is_finite(value):
            results.append(
                EvalResult(
                    task_type=task,
                    dataset_type=kind,
                    dataset_name=data_name(found),
                    dataset_config=as_text(settings) if settings else None,
                    dataset_split=SPLITS.get(split, split),
                    metric_type=metric,
                    metric_value=value,
                )
            )
    return results
