"""Model cards, written from the record of a run. What is unknown is left out."""

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
from maxsup_hf.output.files import replacing
from maxsup_hf.output.tables import Table, markdown

MARK = "<!-- maxsup_hf:"  # how START begins, in the cards of every version
START = f"{MARK} the text between these two marks is rewritten with every card -->"
END = f"{MARK} end -->"
LISTED = 20  # class weights are listed one by one up to this many classes,
LARGEST = 5  # and beyond that only the largest
SPLITS = {"eval": "validation", "test": "test"}


def write_card(folder: str | Path) -> Path:
    """Write `README.md` from the folder's `run.json`, `all_results.json` and `figures/*.png`.

    An existing README is kept: its metadata take precedence, and the generated part follows its text, between two marks.
    Writing the card again replaces only that part.

    Args:
        folder: `output_dir` of a training run.

    Returns:
        The path of the card.

    Raises:
        ValueError: there is no `run.json`, or the README's metadata are invalid (the file is left unchanged).
    """
    folder = Path(folder)
    recorded = load_record(folder)
    path = folder / "README.md"
    text, data = _render(folder, recorded), _metadata(recorded, folder)
    if path.is_file():
        existing = read_card(path)
        text, data = _around(text, existing.text), _merged(data, existing.data.to_dict())
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    with replacing(path) as unfinished:
        unfinished.write_text(f"---\n{front}---\n\n{text}\n", encoding="utf-8")
    read_card(path)
    return path


def _around(generated: str, existing: str) -> str:
    """The text of an existing README, with the generated part in its old place or at the end."""
    before, mark, rest = existing.partition(MARK)
    after = rest.partition(END)[2] if mark else ""
    return "\n\n".join(part for part in (before.strip(), generated, after.strip()) if part)


def _merged(generated: dict[str, Any], existing: dict[str, Any]) -> dict[str, Any]:
    """Metadata in which the existing values take precedence, except for the results; the tags are those of both."""
    merged = generated | existing
    if "model-index" in generated:
        merged["model-index"] = generated["model-index"]
    tags = [*(existing.get("tags") or []), *generated.get("tags", [])]
    if tags:
        merged["tags"] = list(dict.fromkeys(tags))
    return merged


def write_benchmark_result(
    folder: str | Path, dataset_id: str, task_id: str, metric: str = "test_accuracy", revision: str | None = None
) -> Path:
    """Write a result in the Hub's benchmark format, which puts it on the benchmark's leaderboard.

    Args:
        folder: `output_dir` of a training run.
        dataset_id: the benchmark on the Hub, `owner/name`.
        task_id: a task in the benchmark's `eval.yaml`.
        metric: the result to write, a key of `all_results.json`.
        revision: commit sha of the benchmark data used for the evaluation.

    Returns:
        `.eval_results/{dataset}_{task}.yaml` in the folder. An existing file is overwritten.

    Raises:
        ValueError: the run has no such result, or `dataset_id` or `task_id` is malformed.
    """
    results = load_record(folder).get("results", {})
    if metric not in results:
        known = ", ".join(results) or "none were recorded"
        raise ValueError(f"metric must be one of the run's results ({known}), got {metric!r}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset_id):
        raise ValueError(f"benchmark must be a data set on the Hub, as owner/name, got {dataset_id!r}")
    if not re.fullmatch(r"[\w.-]+", task_id):
        raise ValueError(f"task_id must be the id of a task in the benchmark's eval.yaml, got {task_id!r}")
    entry = EvalResultEntry(dataset_id=dataset_id, task_id=task_id, value=results[metric], dataset_revision=revision)
    path = Path(folder) / ".eval_results" / f"{dataset_id.partition('/')[2]}_{task_id}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return path


def read_card(path: str | Path) -> ModelCard:
    """Read a card from disk.

    Raises:
        ValueError: its metadata are not valid YAML, or not what the Hub accepts.
    """
    try:
        return ModelCard.load(path)
    except Exception as error:
        raise ValueError(
            f"{path} is not a valid model card, and the Hub would reject it: {' '.join(str(error).split())[:300]}. "
            "Fix its metadata, the YAML between the two --- lines"
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
    tags = ["maxsup", *loss["name"].split("+")] if loss else []
    tags += found.get("tags") or []
    is_adapter = model.get("adapter")
    relation = None
    if model.get("base_model"):
        relation = "adapter" if is_adapter else "finetune"
    metrics = dict.fromkeys(key.partition("_")[2] for key in found.get("results", {}))
    data = ModelCardData(
        language=found.get("language"),
        license=found.get("license"),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task,
        base_model=model.get("base_model"),
        base_model_relation=relation,
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
    """A table of the class weights, or a sentence with their range and the largest if there are many classes."""
    if not weights:
        return ""
    if len(weights) <= LISTED:
        return markdown(Table(["class", "weight"], [[name, f"{weight:.4g}"] for name, weight in weights.items()]))
    largest = sorted(weights.items(), key=lambda entry: -entry[1])[:LARGEST]
    listed = ", ".join(f"{name} ({weight:.4g})" for name, weight in largest)
    low, high = min(weights.values()), max(weights.values())
    return f"From {low:.4g} to {high:.4g} over {len(weights)} classes; the largest: {listed}."


def _training(found: dict[str, Any], emissions: str | None) -> Iterator[str]:
    """Bullet points of the section on training."""
    if found.get("dataset"):
        settings = f" ({found['dataset_args']})" if found.get("dataset_args") else ""
        yield f"- data: {found['dataset']}{settings}"
    for key, value in found.get("hyperparameters", {}).items():
        yield f"- {key}: {value}"
    time = f" in {found['train_seconds']:.0f} s" if "train_seconds" in found else ""
    yield f"- steps: {found['steps']}{time}"
    yield f"- device: {found['devices']['count']} x {found['devices']['kind']}"
    yield "- versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    if emissions:
        yield f"- emissions: {emissions} g CO2eq, measured by codecarbon"


def _usage(found: dict[str, Any], folder: Path) -> str:
    """Code that loads the model: from the Hub if it was pushed, else from the folder, relative to the folder's parent."""
    where, note = found.get("repo_id"), ""
    if where is None:
        where, note = folder.name, "  # or the full path of the folder"
    task, model_class = found.get("tasks"), found["model"]["class"]
    if found["model"].get("adapter"):
        return f'from peft import AutoPeftModel\n\nmodel = AutoPeftModel.from_pretrained("{where}"){note}'
    if task in PIPELINE_REGISTRY.get_supported_tasks():
        return f'from transformers import pipeline\n\nmodel = pipeline("{task}", model="{where}"){note}'
    load = f'model = {model_class}.from_pretrained("{where}"){note}'
    if task == "text2text-generation":  # recent versions of transformers have no pipeline for it
        return (
            f"from transformers import AutoTokenizer, {model_class}\n\n{load}\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{where}")\ninputs = tokenizer("a text", return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))"
        )
    return f"from transformers import {model_class}\n\n{load}"


def _emissions(folder: Path) -> str | None:
    """Grams of CO2eq of the last run, if codecarbon measured them."""
    path = folder / "emissions.csv"
    if not path.is_file():
        return None
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    return f"{1000 * float(rows[-1]['emissions']):.3g}" if rows else None
