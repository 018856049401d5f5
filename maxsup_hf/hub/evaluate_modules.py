"""What the `evaluate` modules in `maxsup_hf/metrics/maxsup_*` share: their description, and the page of their Space.

Each folder is complete as a Space of the Hub: it needs nothing but the installed maxsup-hf.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import evaluate


def metric_info(
    description: str | None, citation: str, inputs_description: str, **columns: str | list[str]
) -> evaluate.MetricInfo:
    """What a module returns from `_info`.

    Args:
        columns: name -> dtype of one row's value, `[dtype]` for a row that is a sequence.
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
    """A `gradio.Interface` that computes the metric of a folder on arguments given as JSON."""
    import gradio

    (script,) = folder.glob("maxsup_*.py")
    metric = evaluate.load(str(script))

    def compute(arguments: str) -> dict[str, Any]:
        return metric.compute(**json.loads(arguments))

    return gradio.Interface(
        compute,
        inputs=gradio.Textbox((folder / "example.json").read_text(encoding="utf-8"), lines=12, label="Arguments (JSON)"),
        outputs=gradio.JSON(label="Result"),
        title=script.stem,
        article=(folder / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
        flagging_mode="never",
    )
