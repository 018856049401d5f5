"""The Space's page: the metric of this folder on arguments given as JSON."""

import json
from pathlib import Path

import evaluate
import gradio

folder = Path(__file__).parent
(script,) = folder.glob("maxsup_*.py")
metric = evaluate.load(str(script))


def compute(arguments: str) -> dict:
    return metric.compute(**json.loads(arguments))


page = gradio.Interface(
    compute,
    inputs=gradio.Textbox((folder / "example.json").read_text(encoding="utf-8"), lines=12, label="Arguments (JSON)"),
    outputs=gradio.JSON(label="Result"),
    title=script.stem,
    article=(folder / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
