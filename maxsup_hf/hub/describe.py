"""Add to a card what a run does not know: license, language, data on the Hub, an example, a comparison with other losses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maxsup_hf.hub.base_model import is_hub_id
from maxsup_hf.hub.card import read_card, write_card
from maxsup_hf.hub.command import with_base_model
from maxsup_hf.hub.example import example_of
from maxsup_hf.hub.record import load_record, read_record, write_record
from maxsup_hf.hub.results import comparison_of
from maxsup_hf.hub.values import one_or_all

LANGUAGE = r"[a-z]{2,3}(-[\w-]+)?|multilingual|code"
LICENSE = r"[a-z][a-z0-9.-]*"


def describe(
    folder: str | Path,
    *,
    license: str | None = None,
    language: Sequence[str] = (),
    base_model: str | None = None,
    dataset: Sequence[str] = (),
    comparison: str | Path | None = None,
    example: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Add to the record of a run, and write its card. What is given here takes precedence over the metadata of a README.

    Args:
        folder: `output_dir` of a training run.
        license: as the Hub names it, such as `apache-2.0`.
        language: ISO 639 codes, such as `en`.
        base_model: Hub id of the model that was fine-tuned.
        dataset: Hub ids of the training data.
        comparison: `comparison.json` of `maxsup-hf compare`, or its folder, with results of the run's loss.
        example: a text or an image file, which the model in the folder is applied to. The card shows the result.
        trust_remote_code: run the model's code in the folder for the example, if it has any.

    Returns:
        The path of the card.

    Raises:
        ValueError: a malformed value, no record, or an invalid README; nothing was written.
    """
    _check("license", [license] if license else [], LICENSE, "a license as the Hub names it, such as apache-2.0")
    _check("language", language, LANGUAGE, "ISO 639 codes, such as en")
    for name in (*([base_model] if base_model else []), *dataset):
        if not is_hub_id(name):
            what = "base_model" if name == base_model else "dataset"
            raise ValueError(f"{what} must be on the Hub, as owner/name, got {name!r}")
    folder = Path(folder)
    load_record(folder)  # raises before anything is written
    found = read_record(folder)
    if (folder / "README.md").is_file():
        read_card(folder / "README.md")  # an invalid one must not leave a changed record behind
    given: dict[str, Any] = {}
    if license:
        given["license"] = found["license"] = license
    if language:
        given["language"] = found["language"] = one_or_all(language)
    if base_model:
        found["model"] |= {"base_model": base_model, "finetuned": True}
        if "command" in found:
            found["command"] = with_base_model(found["command"], base_model)
        given |= {
            "base_model": base_model,
            "base_model_relation": "adapter" if found["model"].get("adapter") else "finetune",
        }
    if dataset:
        found["dataset"] = found["dataset_tags"] = one_or_all(dataset)
        given["datasets"] = list(dataset)
    if comparison is not None:
        found["comparison"] = _comparison(Path(comparison), found)
    if example is not None:
        found["example"] = example_of(folder, load_record(folder), example, trust_remote_code)
    write_record(folder, found)
    return write_card(folder, given)


def add_comparison(folder: Path, comparison: Mapping[str, Any], loss: str) -> None:
    """Add the results of a comparison to the card of one of its runs.

    Args:
        folder: of the run.
        comparison: the content of `comparison.json`.
        loss: of the run, by its name in the comparison.
    """
    write_record(folder, read_record(folder) | {"comparison": comparison_of(comparison, loss)})
    write_card(folder)


def _check(name: str, values: Sequence[str], pattern: str, expected: str) -> None:
    for value in values:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{name} must be {expected}, got {value!r}")


def _comparison(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    path = path / "comparison.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"comparison must be comparison.json of `maxsup-hf compare`, or its folder, got {str(path)!r}"
        ) from error
    if "loss" not in found:
        raise ValueError("comparison: the run trained nothing that could be compared")
    return comparison_of(content, found["loss"]["name"])
