"""The scripts beside the cards: each name of an experiment is a plan, and a model is published by one command."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maxsup_hf import cli
from maxsup_hf.comparison import cli as compare_cli
from maxsup_hf.comparison.tables import markdown
from maxsup_hf.hub.card import write_card
from maxsup_hf.scripts.common.arguments import in_use
from tests import HANGS
from tests.hub.conftest import hub, hub_environment  # noqa: F401

FOLDER = Path(__file__).parents[1] / "model_cards"
RESULTS = FOLDER / "results"
sys.path.insert(0, str(FOLDER))
import beyond  # noqa: E402
import derived  # noqa: E402
import experiments  # noqa: E402
import gap  # noqa: E402
import publish  # noqa: E402
import speed  # noqa: E402
import verdicts  # noqa: E402

NAMES = list(experiments.experiments(Path("data")))


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_a_plan(name, tmp_path):
    words = [*experiments.experiments(Path("data"))[name], "--seeds", "0,1,2", "--output_dir", str(tmp_path / "out")]
    args, flags = compare_cli.parser(cli.tasks()).parse_known_args(words)
    plan, folder, _ = compare_cli.prepare(args, cli.find_task(args.task), flags)
    assert len(plan.runs()) >= 3 * len(plan.losses) >= 9 and not in_use(str(folder))
    alphas = {(kwargs["alpha"], kwargs["alpha_end"]) for kwargs in plan.losses.values() if "alpha" in kwargs}
    assert alphas == {(0.1, None if name == "constant" else 0.2)}, "losses with an alpha share its schedule"


def test_results_are_of_known_experiments():
    assert {path.stem.removesuffix("-beyond") for path in RESULTS.glob("*.json")} <= {*NAMES, *speed.REPORTS}


@pytest.mark.parametrize("name", [name for name in NAMES if (RESULTS / f"{name}.json").exists()])
def test_results_are_those_of_the_printed_command(name):
    _, _, losses, *flags = experiments.experiments(Path("DATA"), Path("runs/made"))[name]
    flags = [flag.replace(experiments.minilm(), "MINILM") for flag in flags]
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert list(found["losses"]) == losses.split(",")
    of_compare = {"--alpha", "--grid"}
    asked = [flag for at, flag in enumerate(flags) if not of_compare & set(flags[max(0, at - 1) : at + 1])]
    assert [*asked, "--save_strategy", "no"] == found["flags"]


@pytest.mark.parametrize("path", sorted((RESULTS / "reruns").glob("*.json")), ids=lambda path: path.stem)
def test_a_rerun_agrees_within_the_spread(path):
    first, again = (json.loads(p.read_text(encoding="utf-8"))["tables"]["shared"] for p in (RESULTS / path.name, path))
    for metric in ("accuracy", "nll", "brier", "ece", "confidence_when_wrong", "feature_within", "feature_r2"):
        for loss, of in first[metric]["summary"].items():
            other = again[metric]["summary"][loss]
            assert abs(of["mean"] - other["mean"]) <= of["sd"] + other["sd"], (loss, metric)


def test_tables_are_those_of_the_results():
    assert verdicts.text() == (RESULTS / "verdicts.md").read_text(encoding="utf-8")
    assert speed.text() == (RESULTS / "bench_cpu.md").read_text(encoding="utf-8")
    for path in RESULTS.glob("*-beyond.json"):
        values = json.loads(path.read_text(encoding="utf-8"))["values"]
        assert beyond.table(values) == path.with_suffix(".md").read_text(encoding="utf-8")
    for name in NAMES:
        if (path := RESULTS / f"{name}.json").exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            assert markdown(found) == path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", gap.SHOWN)
def test_the_figure_has_a_point_for_each_comparison(metric):
    points = gap.points(metric)
    assert set(points) == {path.stem.removesuffix("-beyond") for path in RESULTS.glob("*-beyond.json")}
    assert all(0 <= error < 1 and spread >= 0 for error, _, spread in points.values())


def test_the_readme_says_what_was_measured():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    found = {"{}×{}".format(*of["shape"]): of for of in json.loads((RESULTS / "bench_cpu.json").read_text())["results"]}
    shapes = re.search(r"label_smoothing=0.1\)` \| (.*) \|", readme)[1].split(" | ")
    for name, values in (
        ("time, forward and backward", [found[shape]["ratios"]["loss"]["label smoothing"] for shape in shapes]),
        ("peak memory over the logits", [found[shape]["peak_memory_over_logits"]["loss"] for shape in shapes]),
    ):
        assert re.search(rf"{name}[^|]*\| (.*) \|", readme)[1].split(" | ") == [f"{value:.2f}" for value in values]
    differences = re.findall(r"\(([+−]\d\.\d{4} ± \d\.\d{4})\)", readme)
    assert differences and all(said.replace("−", "-") in verdicts.text() for said in differences)
    tail = json.loads((RESULTS / "longtail100.json").read_text())["tables"]["shared"]
    assert all(tail[metric]["best"] == "maxsup" and tail[metric]["significant"] for metric in ("ece", "nll", "brier"))
    ece = {loss: f"{of['mean']:.4f}" for loss, of in tail["ece"]["summary"].items()}
    said = "ECE: {maxsup} against {label_smoothing} and cross-entropy's {cross_entropy}".format(**ece)
    assert said in " ".join(readme.split())
    perplexity = json.loads((RESULTS / "shakespeare.json").read_text())["tables"]["shared"]["perplexity"]["summary"]
    assert all(f"{of['mean']:.2f} ± {of['sd']:.2f}" in readme for of in perplexity.values())


@pytest.mark.parametrize(
    ("differences", "sign", "said"),
    [
        ([0.01, 0.011, 0.012], 1, "holds"),
        ([0.01, 0.011, 0.012], -1, "contradicted"),
        ([0.01, -0.011, 0.012], 1, "undecided"),
        ([0.01, 0.03, 0.08], 1, "undecided"),  # beyond two standard errors, but p = 0.19
        ([0.01, 0.01, 0.01], 1, "undecided"),  # no spread to judge by
    ],
)
def test_a_verdict_needs_more_than_the_spread(differences, sign, said):
    assert verdicts.verdict(differences, sign) == said


def test_an_experiment_and_what_lies_beyond_it(tmp_path):
    words = ["noise20", "--data", tmp_path, "--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    fewer = ["--losses", "label_smoothing,maxsup", "--seeds", "0", "--max_steps", "2", "--max_train_samples", "60"]
    for script, more in (("experiments", fewer), ("beyond", [])):
        run = subprocess.run(
            [sys.executable, *map(str, [FOLDER / f"{script}.py", *words, *more])],
            capture_output=True,
            text=True,
            timeout=HANGS,
        )
        assert run.returncode == 0, run.stderr[-3000:]
    text = (tmp_path / "results" / "noise20.json").read_text()
    assert str(tmp_path) not in text and "runs/made/noise20/train.parquet" in text
    values = json.loads((tmp_path / "results" / "noise20-beyond.json").read_text())["values"]
    assert {loss: list(of) for loss, of in values["train_feature_r2"].items()} == {"label_smoothing": ["0"], "maxsup": ["0"]}
    assert "| maxsup | 0." in (tmp_path / "results" / "noise20-beyond.md").read_text()


def test_noise_is_a_share_of_the_labels():
    (clean, _), (noisy, test), (noisier, _) = (derived.noisy_digits(share) for share in (0, 0.2, 0.4))
    few, many = (np.flatnonzero(np.array(of["label"]) != np.array(clean["label"])) for of in (noisy, noisier))
    assert set(few) < set(many) and len(few) == pytest.approx(0.18 * len(clean), rel=0.2)  # a tenth is drawn as it was
    assert len(clean) + len(test) == 1797


@pytest.mark.parametrize("name", [path.parent.name for path in sorted(FOLDER.glob("*/run.json"))])
def test_a_card_is_what_its_record_says(name, tmp_path):
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    write_card(str(folder))
    assert (folder / "README.md").read_text() == (FOLDER / name / "README.md").read_text()
    assert publish.row(name, folder) in (FOLDER / "README.md").read_text().splitlines()


def test_a_model_is_published_by_one_command(hub, hub_environment, tmp_path):  # noqa: F811
    flags = ["--max_steps", "2", "--max_train_samples", "60", "--max_eval_samples", "30", "--push", "me/digits"]
    words = [FOLDER / "publish.py", "digits-maxsup", "--runs", tmp_path / "runs", "--cards", tmp_path / "cards", *flags]
    run = subprocess.run(
        [sys.executable, *map(str, words)], env=hub_environment, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS
    )
    assert run.returncode == 0, run.stderr[-3000:]
    card = tmp_path / "cards" / "digits-maxsup"
    figures = {path.name for path in (card / "figures").glob("*.png")}
    assert {"reliability.png", "within_class.png", "confidence.png"} <= figures
    text = (card / "README.md").read_text()
    assert str(tmp_path) not in text + (card / "run.json").read_text() and "--output_dir runs/digits-maxsup" in text
    assert all(f"(figures/{name})" in text for name in figures) and "| feature_r2 |" in text
    assert {"README.md", "model.safetensors", "figures/reliability.png"} <= set(hub.repos["me/digits"].files("main"))
    assert set(publish.models(Path())) >= {"digits-maxsup"}
