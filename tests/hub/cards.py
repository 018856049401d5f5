"""A folder as a run leaves it, made without a training."""

import json

import yaml

RECORD = {
    "loss": {"name": "maxsup", "kwargs": {"alpha": 0.1}, "formula": "MaxSup.", "citation": ""},
    "model": {"class": "BertForSequenceClassification", "parameters": 1000, "base_model": None, "finetuned": False,
              "adapter": False},
    "processor": True,
    "tasks": "text-classification",
    "dataset": "birds",
    "rows": {"train": 1200, "eval": 300},
    "classes": ["ant", "bee"],
    "devices": {"count": 1, "kind": "CPU"},
    "versions": {"maxsup-hf": "0.2.0"},
    "steps": 5,
    "results": {"eval_accuracy": 0.75},
}  # fmt: skip


def leave(folder, **changes):
    """Write a record with some changes; `None` removes an entry."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {key: value for key, value in (RECORD | changes).items() if value is not None}
    (folder / "run.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def read(folder):
    """Metadata and text of a card."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def comparison(**changes):
    """`comparison.json` of two losses and two seeds; the first is significantly better in accuracy."""

    def metric(means, **more):
        summary = {loss: {"n": 2, "mean": mean, "sd": 0.0125} for loss, mean in means.items()}
        return {"summary": summary, "best": None, "significant": False} | more

    accuracy = metric({"maxsup": 0.9204, "cross_entropy": 0.5}, best="maxsup", significant=True)
    return {
        "losses": {"cross_entropy": {}, "maxsup": {"alpha": 0.1}},
        "seeds": [0, 1],
        "split": "test",
        "runs": [{"name": "maxsup-seed0", "state": "finished", "rows": {"train": 800, "test": 4000}}],
        "tables": {"shared": {"accuracy": accuracy, "ece": metric({"maxsup": None, "cross_entropy": 12.345})}},
    } | changes
