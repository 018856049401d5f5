"""The text of a model card, from the record of a run."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment

from maxsup_hf.hub.command import in_lines, placeholders, portable
from maxsup_hf.hub.figures import figures
from maxsup_hf.hub.metadata import data_name, hub_datasets, model_name
from maxsup_hf.hub.record import why_no_weights
from maxsup_hf.hub.results import comparison_text, confidence_gap, result_tables
from maxsup_hf.hub.training_log import log_table
from maxsup_hf.hub.usage import usage
from maxsup_hf.hub.values import as_list, as_text, is_finite
from maxsup_hf.output.messages import listed
from maxsup_hf.output.private import public_text, without_host
from maxsup_hf.output.tables import Table, markdown

LISTED = 20  # classes are listed one by one up to this many,
LARGEST = 5  # and of more, only the largest weights
WORTH_SAYING = 0.05  # difference between confidence and accuracy
SHOWN = 10  # names of classes that are shown if there are more
NO_BASE = "The adapter cannot be used without its base model, which had random weights and was not saved."
NO_CLASS = (
    "The class of the model, `{model_class}`, is not one of transformers: build the model as in the training, and load the "
    "weights of this folder into it."
)
NOT_KEPT = "The weights of this run were not kept. To have them, train again as shown below."
KINDS = {
    "fill-mask": "masked language model",
    "image-classification": "image classifier",
    "image-segmentation": "segmentation model",
    "multiple-choice": "model for multiple-choice questions",
    "question-answering": "question-answering model",
    "text-classification": "text classifier",
    "text-generation": "language model",
    "text2text-generation": "sequence-to-sequence model",
    "token-classification": "token classifier",
}
SPLIT_NAMES = {"train": "training", "eval": "validation", "test": "test"}


def render(folder: Path, found: Mapping[str, Any], start: str, end: str) -> str:
    """The generated part of a card.

    Args:
        folder: of the run, with `figures/*.png` and `emissions.csv` if it has them.
        found: its record.
        start: the mark that begins the part.
        end: the mark that ends it.
    """
    environment = Environment(
        undefined=ChainableUndefined, keep_trailing_newline=False, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("maxsup_hf.hub").joinpath("card.md.jinja").read_text(encoding="utf-8"))
    loss, results = found.get("loss", {}), found.get("results", {})
    main, others = result_tables(results)
    parameters = [[f"`{key}`", value] for key, value in loss.get("kwargs", {}).items()]
    command = portable(found.get("command", ""))
    are_kept = why_no_weights(folder) is None
    text = template.render(
        **found,
        start=start,
        end=end,
        title=model_name(found, folder),
        about=_about(found),
        facts="\n".join(f"- **{name}**: {value}" for name, value in _facts(found)),
        code=usage(found, folder) if are_kept else "",
        no_code=_why_no_code(found["model"]) if are_kept else NOT_KEPT,
        main=main,
        others=others,
        undefined=[key for key, value in results.items() if not is_finite(value)],
        compared=comparison_text(found["comparison"]) if "comparison" in found else "",
        figures=figures(folder),
        parameters=markdown(Table(["parameter", "value"], parameters)),
        class_weights=_weight_table(loss.get("class_weights", {})),
        log_table=log_table(found.get("log", [])),
        limits="\n".join(_limits(found)),
        command_lines=in_lines(command),
        training="\n".join(_training(found, _emissions(folder))),
        placeholders=placeholders(command),
        penalizes="maxsup" in loss.get("name", "").split("+"),
    )
    return without_host(public_text(re.sub(r"\n{3,}", "\n\n", text).strip()))


def _why_no_code(model: Mapping[str, Any]) -> str:
    if model.get("adapter") and not model["finetuned"]:
        return NO_BASE
    return NO_CLASS.format(model_class=model["class"])


def _about(found: Mapping[str, Any]) -> str:
    """The first sentence: what the model is, and how it was made."""
    model, loss = found["model"], found.get("loss")
    kind = KINDS.get(next(iter(as_list(found.get("tasks"))), ""), "model")
    if found.get("classes"):
        kind += f" with {len(found['classes'])} classes"
    if model.get("adapter"):
        kind = f"{_adapter_kind(model)} for a {kind}"
    kind = kind[0].upper() + kind[1:]
    if not loss:
        return f"{kind}."
    verb = "fine-tuned" if model.get("finetuned") else "trained"
    data = f" on {_linked(found)}" if found.get("dataset") else ""
    return f"{kind}, {verb}{data} with the loss `{loss['name']}`."


def _adapter_kind(model: Mapping[str, Any]) -> str:
    name = model.get("adapter_type") or "PEFT"
    return f"{'LoRA' if name == 'LORA' else name} adapter"


def _linked(found: Mapping[str, Any]) -> str:
    """The data, with a link if they are one data set of the Hub."""
    name, ids = data_name(found), hub_datasets(found)
    return f"[{name}](https://huggingface.co/datasets/{ids[0]})" if len(ids) == 1 else name


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model = found["model"]
    tasks = as_list(found.get("tasks"))
    if tasks:
        yield "task", ", ".join(tasks).replace("-", " ")
    if model.get("base_model"):
        yield "base model", f"[{model['base_model']}](https://huggingface.co/{model['base_model']})"
    elif model.get("adapter") and model.get("finetuned"):
        yield "base model", "a local model that is not on the Hub (`base_model_name_or_path` in `adapter_config.json`)"
    elif model.get("finetuned"):
        yield "base model", "a local model that is not on the Hub"
    else:
        yield "base model", "none (trained from random weights)"
    yield "architecture", f"{model['class']}, {model['parameters']:,} parameters"
    if model.get("trained_parameters"):
        yield "adapter", f"{_adapter_kind(model)}, {model['trained_parameters']:,} trained parameters"
    if found.get("dataset"):
        settings = f" ({as_text(found['dataset_args'])})" if found.get("dataset_args") else ""
        yield "data", _linked(found) + settings
    rows = [f"{count:,} {SPLIT_NAMES[split]}" for split, count in found.get("rows", {}).items()]
    if rows:
        yield "rows", ", ".join(rows)
    if found.get("classes"):
        yield "classes", _class_names(found["classes"])
    for key in ("language", "license"):
        if found.get(key):
            yield key, as_text(found[key])


def _class_names(names: list[str]) -> str:
    if names == [str(index) for index in range(len(names))] and len(names) > 2:
        return f"{len(names)} (0 to {len(names) - 1})"
    return f"{len(names)} ({listed(names, LISTED if len(names) <= LISTED else SHOWN)})"


def _weight_table(weights: Mapping[str, float]) -> str:
    """A table of the class weights, or a sentence with their range and the largest if there are many classes."""
    if not weights:
        return ""
    if len(weights) <= LISTED:
        return markdown(Table(["class", "weight"], [[name, f"{weight:.4g}"] for name, weight in weights.items()]))
    largest = sorted(weights.items(), key=lambda entry: -entry[1])[:LARGEST]
    named = ", ".join(f"{name} ({weight:.4g})" for name, weight in largest)
    low, high = min(weights.values()), max(weights.values())
    return f"From {low:.4g} to {high:.4g} over {len(weights)} classes; the largest: {named}."


def _training(found: Mapping[str, Any], emissions: str | None) -> Iterator[str]:
    """Bullet points of the section on training."""
    settings = dict(found.get("hyperparameters", {}))
    unused = "num_train_epochs" if settings.get("max_steps", -1) > 0 else "max_steps"
    settings.pop(unused, None)
    for key, value in settings.items():
        note = " (share of all steps)" if key == "warmup_steps" and value < 1 else ""
        yield f"- {key}: {value}{note}"
    time = f" in {found['train_seconds']:.0f} s" if "train_seconds" in found else ""
    yield f"- steps: {found['steps']}{time}"
    yield f"- device: {found['devices']['count']} x {found['devices']['kind']}"
    yield "- versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    if emissions:
        yield f"- emissions: {emissions} g CO2eq, measured by codecarbon"


def _limits(found: Mapping[str, Any]) -> Iterator[str]:
    """Bullet points of the section on limits."""
    if found.get("results"):
        yield "- The results come from a single run, on the data named here."
    yield "- How the model performs on other data has not been measured."
    if found.get("classes"):
        yield "- It always answers with one of its classes, even if none of them fits."
    gap = confidence_gap(found.get("results", {}))
    if abs(gap) > WORTH_SAYING:
        side = "above" if gap > 0 else "below"
        yield (
            f"- On average, its confidence is {abs(gap):.2f} {side} its accuracy. Rescale its probabilities, for example by "
            "temperature scaling, before you rely on their values."
        )
    if found["model"].get("finetuned"):
        yield "- It may have inherited the biases of its base model."


def _emissions(folder: Path) -> str | None:
    """Grams of CO2eq of the last run, if codecarbon measured them."""
    path = folder / "emissions.csv"
    if not path.is_file():
        return None
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    return f"{1000 * float(rows[-1]['emissions']):.3g}" if rows else None
