"""The metrics as modules of `evaluate`: loaded from the package, without a network, with the values of the functions."""

import json
import os
import re
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

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
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
for name in ("accelerate", "babel", "kornia"):  # which no requirements.txt names
    sys.modules[name] = None
import evaluate

class Error(Exception):
    def __init__(self, message, duration):
        assert duration is None  # it stays until it is read
        super().__init__(message)

gradio = types.ModuleType("gradio")  # it is installed on the Hub only
gradio.Interface = lambda compute, **options: compute
gradio.Textbox = gradio.JSON = lambda *args, **options: None
gradio.Error = Error
sys.modules["gradio"] = gradio
bad = json.loads(sys.argv[1])

def error(compute, text):
    try:
        return compute(text)
    except Error as error:
        return str(error)

found = {}
for folder in map(Path, sys.argv[2:]):
    arguments = json.loads((folder / "example.json").read_text())
    metric = evaluate.load(str(folder))
    found[folder.name] = metric.compute(**arguments)
    compute = runpy.run_path(str(folder / "app.py"))["demo"]
    found[folder.name + " with bad arguments"] = [error(compute, text) for text in bad]
    found[folder.name + " on its page"] = compute((folder / "example.json").read_text())
    extra = {name: arguments.pop(name) for name in list(arguments) if name not in metric.features}
    for i in range(len(arguments["references"])):
        metric.add_batch(**{name: values[i : i + 1] for name, values in arguments.items()})
    found[folder.name + " in batches"] = metric.compute(**extra)
print(json.dumps(found))
"""


# What a visitor of the page may type -> what the page says.
BAD = {
    '{"predictions": [[1, 2]], "references"': "the arguments must be JSON: Expecting ':' delimiter: line 1 column 39",
    "[1]": 'the arguments must be a JSON object such as {"predictions": …}, got list',
    '{"predictions": [[1, 2]], "bims": 3}': "the arguments must be predictions, .*missing: .*references.*, unknown: bims",
    '{"references": [0.5], "predictions": [[1, 2]]}': "(missing: |don't match|references must be indices of classes)",
    '{"references": [0], "predictions": [["<b>"]]}': "(missing: |don't match the expected format.*&lt;b&gt;)",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The result of each module on its own example, in a process with its own cache."""
    env = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_EVALUATE_OFFLINE": "1"}
    command = [sys.executable, "-c", SOURCE, json.dumps(list(BAD)), *map(str, FOLDERS)]
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
def test_the_page_says_what_is_wrong(name, found):
    for said, expected in zip(found[f"{name} with bad arguments"], BAD.values(), strict=True):
        assert isinstance(said, str) and re.search(expected, said) and "\n" not in said, said


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
    # The package is copied beside the folder, as the README says, because no index of packages has it.
    assert f"cp -r maxsup_hf/metrics/{name} space\npip install --no-deps --target space .\n" in text
    required = (folder / "requirements.txt").read_text().splitlines()
    assert required and set(required) < set(re.findall(r'^    "(.*)",$', PYPROJECT.read_text(), re.MULTILINE))
