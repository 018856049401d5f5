"""Model cards, written from the record of a run. What is unknown is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from maxsup_hf.hub.metadata import merged, metadata, without_paths
from maxsup_hf.hub.record import RECORD, load_record, read_record, write_record
from maxsup_hf.hub.text import render
from maxsup_hf.hub.values import is_finite
from maxsup_hf.output.files import replacing

MARK = "<!-- maxsup_hf:"  # how START begins, in the cards of every version
START = f"{MARK} the text between these two marks is rewritten with every card -->"
END = f"{MARK} end -->"
CONVERTED = "converted from the MaxSup authors' code"  # in the title of a converted model's card
ITS_MODEL = re.compile(
    r'(pipeline\("image-classification", model=)"[^"\n]*"(.*?)( *# or the full path of the folder)?$', re.M
)
PEFT_TEMPLATE = "# Model Card for Model ID"
PEFT_VERSION = re.compile(r"\s*### Framework versions\s+- PEFT \S+\s*$")  # what PEFT adds to a card that is not its own


def write_card(folder: str | Path, given: Mapping[str, Any] | None = None) -> Path:
    """Write `README.md` from the folder's `run.json`, `all_results.json` and `figures/*.png`.

    An existing README is kept: its metadata take precedence, and the generated part follows its text, between two marks.
    Writing the card again replaces only that part. The template that PEFT saves with an adapter is replaced.

    Args:
        folder: `output_dir` of a training run.
        given: metadata that take precedence over those of an existing README.

    Returns:
        The path of the card.

    Raises:
        ValueError: there is no `run.json`, or the README's metadata are invalid (the file is left unchanged).
    """
    folder = Path(folder)
    recorded = load_record(folder)
    path = folder / "README.md"
    text, existing = render(folder, recorded, START, END), {}
    if path.is_file():
        card = read_card(path)
        text, existing = _around(text, _without_template(card.text)), card.data.to_dict()
    _write(path, merged(metadata(recorded, folder), existing, given or {}), text)
    return path


def card_for_repository(folder: str | Path, repo_id: str) -> None:
    """Prepare the card of a folder for a repository: title, code and results name the repository, and nothing is left of
    PEFT's template and of the path of a local base model, which the Hub rejects. A README without a record is otherwise
    left as it is, except for the code of a converted model.

    Args:
        folder: the files to push, which are changed.
        repo_id: `namespace/name`.

    Raises:
        ValueError: the README's metadata are invalid.
    """
    folder = Path(folder)
    path = folder / "README.md"
    if (folder / RECORD).is_file():
        recorded = read_record(folder)
        if not f"/{repo_id}".endswith(f"/{recorded.get('repo_id')}"):  # it may have no namespace
            recorded.pop("model_name", None)  # chosen for another repository, or for none
        write_record(folder, recorded | {"repo_id": repo_id})
        if path.is_file() and MARK in path.read_text(encoding="utf-8"):
            write_card(folder)
            return
    if path.is_file():
        card = read_card(path)
        text, existing = _without_template(card.text).strip(), card.data.to_dict()
        if CONVERTED in text:
            text = ITS_MODEL.sub(rf'\1"{repo_id}"\2', text)
        public = without_paths(existing)
        if text != card.text.strip() or public != existing:
            _write(path, public, text)


def _write(path: Path, data: Mapping[str, Any], text: str) -> None:
    front = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
    with replacing(path) as unfinished:
        unfinished.write_text(f"---\n{front}---\n\n{text}\n", encoding="utf-8")
    read_card(path)


def _around(generated: str, existing: str) -> str:
    """The text of an existing README, with the generated part in its old place or at the end."""
    before, mark, rest = existing.partition(MARK)
    after = rest.partition(END)[2] if mark else ""
    return "\n\n".join(part for part in (before.strip(), generated, after.strip()) if part)


def _without_template(text: str) -> str:
    """The text of a README without what PEFT saves with an adapter: its template, or the version that it adds to a card."""
    text = PEFT_VERSION.sub("", text)
    if not text.lstrip().startswith(PEFT_TEMPLATE):
        return text
    return MARK + text.partition(MARK)[2] if MARK in text else ""


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
    if not is_finite(results.get(metric)):
        known = ", ".join(results) or "none were recorded"
        raise ValueError(f"metric must be one of the run's results ({known}), got {metric!r}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset_id):
        raise ValueError(f"benchmark must be a data set on the Hub, as owner/name, got {dataset_id!r}")
    if not re.fullmatch(r"[\w.-]+", task_id):
        raise ValueError(f"task_id must be the id of a task in the benchmark's eval.yaml, got {task_id!r}")
    entry = EvalResultEntry(dataset_id=dataset_id, task_id=task_id, value=results[metric], dataset_revision=revision)
    path = Path(folder) / ".eval_results" / f"{dataset_id.partition('/')[2]}_{task_id}.yaml"
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
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
