"""A model card that fills itself from what a run recorded. What is not known is left out."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from jinja2 import ChainableUndefined, Environment
from transformers.pipelines import PIPELINE_REGISTRY

from maxsup_hf.hub.record import load_record
from maxsup_hf.metrics import get_metric
from maxsup_hf.output.tables import Table, markdown

START = "<!-- maxsup_hf: what stands between these marks is written anew with every card -->"
END = "<!-- maxsup_hf: end -->"
LISTED = 20  # so many class weights are shown one by one
LARGEST = 5  # of more classes, so many
SPLITS = {"eval": "validation", "test": "test"}


def write_card(folder: str | Path) -> Path:
    """Write `README.md` from the folder's `run.json`, `all_results.json` and `figures/*.png`.

    A README that is there already is kept: its metadata win over ours, and our part stands between two marks, after its
    text. Writing again changes nothing.

    Args:
        folder: `output_dir` of a training.

    Returns:
        The path of the card.

    Raises:
        ValueError: no `run.json`, or a README whose metadata cannot be read (which is left as it is).
    """
    folder = Path(folder)
    found = load_record(folder)
    path = folder / "README.md"
    given = read_card(path) if path.is_file() else None
    text = _render(folder, found)
    data = _metadata(found, folder)
    if given is not None:
        before, mark, rest = given.text.partition(START)
        after = rest.partition(END)[2] if mark else ""
        text = "\n\n".join(part for part in (before.strip(), text, after.strip()) if part)
        theirs = given.data.to_dict()
        tags = [*(theirs.get("tags") or []), *data.get("tags", [])]
        results = {key: data[key] for key in ("model-index",) if key in data}
        data = data | theirs | results | ({"tags": list(dict.fromkeys(tags))} if tags else {})
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    path.write_text(f"---\n{front}---\n\n{text}\n", encoding="utf-8")
    read_card(path)
    return path


def write_benchmark_result(
    folder: str | Path, dataset_id: str, task_id: str, metric: str = "test_accuracy", revision: str | None = None
) -> Path:
    """Write a measured result in the Hub's format for benchmarks, with which it shows on the benchmark's leaderboard.

    Args:
        folder: `output_dir` of a training.
        dataset_id: of the benchmark on the Hub.
        task_id: of the task in the benchmark's `eval.yaml`.
        metric: which result, a key of `all_results.json`.
        revision: sha of the benchmark's data that was evaluated on.

    Returns:
        `.eval_results/{dataset}_{task}.yaml` in the folder; written anew if it is there.

    Raises:
        ValueError: no such result, or a dataset's id or a task's that is none.
    """
    results = load_record(folder).get("results", {})
    if metric not in results:
        raise ValueError(
            f"metric must be one of the run's results, {', '.join(results) or 'of which there are none'}; got {metric!r}"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset_id):
        raise ValueError(f"benchmark must be a data set's id on the Hub, as owner/name, got {dataset_id!r}")
    if not re.fullmatch(r"[\w.-]+", task_id):
        raise ValueError(f"task_id must be the name of a task in the benchmark's eval.yaml, got {task_id!r}")
    entry = EvalResultEntry(dataset_id=dataset_id, task_id=task_id, value=results[metric], dataset_revision=revision)
    path = Path(folder) / ".eval_results" / f"{dataset_id.partition('/')[2]}_{task_id}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return path


def read_card(path: str | Path) -> ModelCard:
    """A card from disk.

    Raises:
        ValueError: its metadata are no YAML, or not what the Hub takes.
    """
    try:
        return ModelCard.load(path)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a model card, and the Hub would refuse it: {' '.join(str(error).split())[:300]}. "
            "Correct the part between the --- lines"
        ) from error


def _metadata(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    model, loss = found["model"], found.get("loss")
    tasks = found.get("tasks")
    task = tasks if isinstance(tasks, str) else None
    results = []
    for key, value in found.get("results", {}).items():
        split, _, metric = key.partition("_")
        if task and found.get("dataset"):
            results.append(
                EvalResult(
                    task_type=task,
                    dataset_type=found.get("dataset_tags") or "local",
                    dataset_name=found["dataset"],
                    dataset_config=found.get("dataset_args"),
                    dataset_split=SPLITS.get(split, split),
                    metric_type=metric,
                    metric_value=value,
                )
            )
    tags = [*(["maxsup", *loss["name"].split("+")] if loss else []), *(found.get("tags") or [])]
    metrics = dict.fromkeys(key.partition("_")[2] for key in found.get("results", {}))
    data = ModelCardData(
        language=found.get("language"),
        license=found.get("license"),
        library_name="peft" if model.get("adapter") else "transformers",
        pipeline_tag=task,
        base_model=model.get("base_model"),
        base_model_relation=("adapter" if model.get("adapter") else "finetune") if model.get("base_model") else None,
        datasets=[found["dataset_tags"]] if found.get("dataset_tags") else None,
        metrics=list(metrics) or None,
        tags=list(dict.fromkeys(tags)) or None,
        model_name=_name(found, folder) if results else None,
        eval_results=results or None,
    )
    return {key: value for key, value in data.to_dict().items() if value is not None}


def _name(found: dict[str, Any], folder: Path) -> str:
    return found.get("model_name") or str(found.get("repo_id", folder.absolute().name)).rpartition("/")[2]


def _render(folder: Path, found: dict[str, Any]) -> str:
    values: dict[str, dict[str, str]] = {}
    for key, value in found.get("results", {}).items():
        split, _, metric = key.partition("_")
        values.setdefault(metric, {})[SPLITS.get(split, split)] = f"{value:.4g}"
    splits = [split for split in SPLITS.values() if any(split in of for of in values.values())]
    rows = [[get_metric(key).heading, *(of.get(split, "") for split in splits)] for key, of in values.items()]
    figures = [
        {"title": path.stem.replace("_", " "), "path": path.relative_to(folder).as_posix()}
        for path in sorted(folder.glob("figures/*.png"))
    ]
    environment = Environment(undefined=ChainableUndefined, keep_trailing_newline=False)
    template = environment.from_string(files("maxsup_hf.hub").joinpath("card.md.jinja").read_text(encoding="utf-8"))
    loss = found.get("loss", {})
    parameters = [[f"`{key}`", value] for key, value in loss.get("kwargs", {}).items()]
    text = template.render(
        **found,
        start=START,
        end=END,
        name=_name(found, folder),
        table=markdown(Table(["metric", *splits], rows)),
        parameters=markdown(Table(["parameter", "value"], parameters)),
        class_weights=_weight_table(loss.get("class_weights", {})),
        training="\n".join(_training(found, _emissions(folder))),
        figures=figures,
        usage=_usage(found, folder),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _weight_table(weights: dict[str, float]) -> str:
    """Every class weight, or of many classes how far they reach and the largest."""
    if len(weights) <= LISTED:
        rows = [[name, f"{weight:.4g}"] for name, weight in weights.items()]
        return markdown(Table(["class", "weight"], rows)) if rows else ""
    largest = sorted(weights.items(), key=lambda entry: -entry[1])[:LARGEST]
    listed = ", ".join(f"{name} ({weight:.4g})" for name, weight in largest)
    low, high = min(weights.values()), max(weights.values())
    return f"From {low:.4g} to {high:.4g} over {len(weights)} classes; the largest: {listed}."


def _training(found: dict[str, Any], emissions: str | None) -> Iterator[str]:
    if found.get("dataset"):
        yield f"- data: {found['dataset']}" + (f" ({found['dataset_args']})" if found.get("dataset_args") else "")
    for key, value in found.get("hyperparameters", {}).items():
        yield f"- {key}: {value}"
    time = f" in {found['train_seconds']:.0f} s" if "train_seconds" in found else ""
    yield f"- steps: {found['steps']}{time}"
    yield f"- device: {found['devices']['count']} x {found['devices']['kind']}"
    yield "- versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    if emissions:
        yield f"- emissions: {emissions} g CO2eq, measured by codecarbon"


def _usage(found: dict[str, Any], folder: Path) -> str:
    """Code that runs as it stands, from anywhere if the model is on the Hub, else where the folder is."""
    where, note = found.get("repo_id"), ""
    if where is None:
        where, note = folder.name, "  # or the folder's path, where you are not beside it"
    task = found.get("tasks")
    if found["model"].get("adapter"):
        return f'from peft import AutoPeftModel\n\nmodel = AutoPeftModel.from_pretrained("{where}"){note}'
    if task in PIPELINE_REGISTRY.get_supported_tasks():
        return f'from transformers import pipeline\n\nmodel = pipeline("{task}", model="{where}"){note}'
    kind = found["model"]["class"]
    if task == "text2text-generation":
        return (
            f'from transformers import AutoTokenizer, {kind}\n\nmodel = {kind}.from_pretrained("{where}"){note}\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{where}")\ninputs = tokenizer("a text", return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))"
        )
    return f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("{where}"){note}'


def _emissions(folder: Path) -> str | None:
    """Grams of CO2eq of the last run, where codecarbon wrote them."""
    path = folder / "emissions.csv"
    if not path.is_file():
        return None
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    return f"{1000 * float(rows[-1]['emissions']):.3g}" if rows else None
