"""The metrics as modules of `evaluate`: loaded from the package, without a network, with the values of the functions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import maxsup_hf.metrics
from maxsup_hf.metrics import (
    CalibrationMetrics,
    LogitMetrics,
    feature_geometry,
    knn_accuracy,
    linear_probe,
    shot_accuracy,
)

ROOT = Path(maxsup_hf.metrics.__path__[0])
FOLDERS = sorted(ROOT.glob("maxsup_*/"))
NAMES = [folder.name for folder in FOLDERS]


def geometry(predictions, references, classifier, predicted):
    return feature_geometry(predictions, references, classifier=np.array(classifier), predictions=predicted)


def calibration(predictions, references, bins):
    metrics = CalibrationMetrics(bins)
    metrics.update(predictions, references)
    return metrics.compute()


def logits(predictions, references, alpha):
    metrics = LogitMetrics(alpha)
    metrics.update(predictions, references)
    return metrics.compute()


def probe(predictions, references, split, l2, k):
    part = {s: np.flatnonzero(np.array(split) == s) for s in ("train", "validation", "test")}
    x, y = np.array(predictions), np.array(references)
    found = linear_probe(*(a[i] for i in part.values() for a in (x, y)), l2=l2)
    neighbours = knn_accuracy(x[part["train"]], y[part["train"]], x[part["test"]], y[part["test"]], k=k)
    return {"linear_probe_accuracy": found.accuracy, "l2": found.l2, "knn_accuracy": neighbours}


def robustness(predictions, references, train_counts):
    return shot_accuracy(predictions, references, train_counts)


DIRECT = {f"maxsup_{f.__name__}": f for f in (geometry, calibration, logits, probe, robustness)}

SOURCE = """
import json, runpy, socket, sys, types
from pathlib import Path

def refuse(*args):
    raise AssertionError("a connection was tried")

socket.socket.connect = refuse
import evaluate

gradio = types.ModuleType("gradio")  # it is installed on the Hub only
gradio.Interface = lambda compute, **options: compute
gradio.Textbox = gradio.JSON = lambda *args, **options: None
sys.modules["gradio"] = gradio
found = {}
for folder in map(Path, sys.argv[1:]):
    arguments = json.loads((folder / "example.json").read_text())
    metric = evaluate.load(str(folder))
    found[folder.name] = metric.compute(**arguments)
    compute = runpy.run_path(str(folder / "app.py"))["demo"]
    found[folder.name + " on its page"] = compute((folder / "example.json").read_text())
    extra = {name: arguments.pop(name) for name in list(arguments) if name not in metric.features}
    for i in range(len(arguments["references"])):
        metric.add_batch(**{name: values[i : i + 1] for name, values in arguments.items()})
    found[folder.name + " in batches"] = metric.compute(**extra)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The result of each module on its own example, in a process with its own cache."""
    env = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_EVALUATE_OFFLINE": "1"}
    command = [sys.executable, "-c", SOURCE, *map(str, FOLDERS)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_folder_is_compared():
    assert sorted(DIRECT) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_function(name, found):
    arguments = json.loads((ROOT / name / "example.json").read_text())
    expected = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in DIRECT[name](**arguments).items()}
    for result in (found[name], found[f"{name} in batches"], found[f"{name} on its page"]):
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            assert result[key] == pytest.approx(value, nan_ok=True), key


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_a_space(name):
    folder = ROOT / name
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        f"{name}.py", "README.md", "app.py", "example.json", "requirements.txt",
    }  # fmt: skip
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["title"] == name and card["sdk"] == "gradio" and card["app_file"] == "app.py"
    assert {"evaluate", "metric"} <= set(card["tags"]) and name in text
    assert (folder / "requirements.txt").read_text() == "maxsup-hf\n"
