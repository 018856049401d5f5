"""What the `evaluate` modules in `maxsup_hf/metrics/maxsup_*` share: their description, and the page of their Space.

Each folder is a Space of the Hub once the package is beside it: its README says how to put it there.
"""

from __future__ import annotations

import html
import inspect
import json
from pathlib import Path
from typing import Any

import datasets
import evaluate

SHOWN = 1000  # characters of an error on the page


def metric_info(
    description: str | None, citation: str, inputs_description: str, **columns: str | list[str]
) -> evaluate.MetricInfo:
    """What a module returns from `_info`.

    Args:
        columns: name -> dtype of one row's value, `[dtype]` for a row that is a sequence. Classes are float64 too, and the
            module checks that they are integers: of an int64 column `evaluate` would take 0.7 for class 0.
    """
    features: dict[str, Any] = {}
    for name, dtype in columns.items():
        if isinstance(dtype, list):
            features[name] = datasets.Sequence(datasets.Value(dtype[0]))
        else:
            features[name] = datasets.Value(dtype)
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs_description,
        features=datasets.Features(features),
    )


def page(folder: Path) -> Any:
    """A `gradio.Interface` that computes a folder's metric on arguments given as JSON, or says what is wrong with them."""
    import gradio

    (script,) = folder.glob("maxsup_*.py")
    metric = evaluate.load(str(script))

    def compute(arguments: str) -> dict[str, Any]:
        try:
            return metric.compute(**_arguments(arguments, metric))
        except Exception as error:  # without a `gradio.Error`, the page says no more than "Error"
            text = " ".join(str(error).split()) or type(error).__name__
            raise gradio.Error(html.escape(text[:SHOWN], quote=False), duration=None) from error

    return gradio.Interface(
        compute,
        inputs=gradio.Textbox((folder / "example.json").read_text(encoding="utf-8"), lines=12, label="Arguments (JSON)"),
        outputs=gradio.JSON(label="Result"),
        title=script.stem,
        article=(folder / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
        flagging_mode="never",
    )


def _arguments(text: str, metric: evaluate.Metric) -> dict[str, Any]:
    """The arguments of `compute` in a JSON text."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the arguments must be JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f'the arguments must be a JSON object such as {{"predictions": …}}, got {type(found).__name__}')
    known = inspect.signature(metric._compute).parameters
    missing = [name for name, parameter in known.items() if parameter.default is parameter.empty and name not in found]
    unknown = sorted(found.keys() - known.keys())
    if missing or unknown:
        raise ValueError(
            f"the arguments must be {', '.join(known)}; missing: {', '.join(missing) or 'none'}, "
            f"unknown: {', '.join(unknown) or 'none'}"
        )
    return found
