"""What a card says, from records that are made without a training."""

import json
import math
import re
import shlex
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from maxsup_hf import cli
from maxsup_hf.comparison.cli import _write_cards
from maxsup_hf.hub.base_model import hub_base_model
from maxsup_hf.hub.card import card_for_repository, write_benchmark_result, write_card
from maxsup_hf.hub.command import in_lines, with_base_model, with_placeholders
from maxsup_hf.hub.figures import CAPTIONS
from maxsup_hf.hub.record import _hyperparameters
from maxsup_hf.hub.results import comparison_of, comparison_text
from maxsup_hf.hub.training_log import MOST_ROWS, log_table, training_log
from tests.hub.cards import comparison, leave, read

# ---- data sets and tasks ----


@pytest.mark.parametrize(
    ("told", "datasets", "kind", "config"),
    [
        ({"dataset_tags": "me/a"}, ["me/a"], "me/a", None),
        ({"dataset": ["a", "b"], "dataset_tags": ["me/a", "me/b"]}, ["me/a", "me/b"], "local", None),
        ({"dataset_tags": ["me/a"], "dataset_args": ["x", "y"]}, ["me/a"], "me/a", "x, y"),
        ({"dataset_tags": "me/a", "dataset_args": {"lang": "no", "v": None}}, ["me/a"], "me/a", "lang=no, v=None"),
        ({"dataset_tags": "/data/images"}, None, "local", None),
        ({"dataset": "/data/images"}, None, "local", None),
        ({"dataset": None}, None, None, None),
    ],
)
def test_data_sets(told, datasets, kind, config, tmp_path):
    folder = leave(tmp_path / "run", **told)
    write_card(folder)
    found, text = read(folder)
    assert found.get("datasets") == datasets and "/data/images" not in text + str(found)
    of = [result["dataset"] for result in found["model-index"][0]["results"]] if kind else []
    assert [(each["type"], each.get("config")) for each in of] == ([(kind, config)] if kind else [])
    ModelCard.load(folder / "README.md")


def test_several_tasks(tmp_path):
    folder = leave(tmp_path / "run", tasks=["text-classification", "zero-shot-classification"])
    write_card(folder)
    found, text = read(folder)
    assert found["pipeline_tag"] == "text-classification" and found["tags"] == ["maxsup", "zero-shot-classification"]
    assert 'pipeline("text-classification"' in text


# ---- results ----


@pytest.mark.parametrize("kept_in", ["run.json", "all_results.json"])
def test_values_that_are_no_numbers_are_not_results(kept_in, tmp_path):
    values = {"eval_accuracy": 0.5, "eval_nll": math.inf, "eval_ece": math.nan}
    folder = leave(tmp_path / "run", results={"eval_accuracy": 0.5, "eval_nll": None, "eval_ece": None})
    if kept_in == "all_results.json":
        (folder / kept_in).write_text(json.dumps(values))
    write_card(folder)
    found, text = read(folder)
    (result,) = found["model-index"][0]["results"]
    assert (
        [(each["type"], each["value"]) for each in result["metrics"]] == [("accuracy", 0.5)] == [(found["metrics"][0], 0.5)]
    )
    assert "| ECE ↓ | undefined |" in text and '"undefined": the value was NaN or infinite' in text
    with pytest.raises(ValueError, match="must be one of the run's results"):
        write_benchmark_result(folder, "me/birds", "species", "eval_ece")


def test_each_metric_is_explained(tmp_path):
    folder = leave(tmp_path / "run", results={"eval_accuracy": 0.5, "eval_mce": 0.25, "eval_my_own": 1.0})
    write_card(folder)
    main, others = read(folder)[1].split("<details>")
    assert "| accuracy ↑ | 0.5 |" in main and "- accuracy: share of rows" in main
    assert "| MCE ↓ | 0.25 |" in others and "- MCE: gap between" in others and "- my own" not in others


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"test_accuracy": 0.9, "test_confidence_when_right": 0.7, "test_confidence_when_wrong": 0.4}, "0.23 below"),
        ({"test_accuracy": 0.5, "test_confidence_when_right": 0.9, "test_confidence_when_wrong": 0.7}, "0.30 above"),
        ({"eval_accuracy": 1.0, "eval_confidence_when_right": 0.8, "eval_confidence_when_wrong": None}, "0.20 below"),
        ({"eval_accuracy": 0.8, "eval_confidence_when_right": 0.8, "eval_confidence_when_wrong": 0.8}, None),
        ({"eval_accuracy": 0.8}, None),
    ],
)
def test_the_limits_say_how_far_the_confidence_is_off(results, said, tmp_path):
    folder = leave(tmp_path / "run", results=results)
    write_card(folder)
    assert re.findall(r"confidence is (0\.\d\d \w+) its accuracy", read(folder)[1]) == ([said] if said else [])


# ---- a comparison ----


def test_results_of_other_losses(tmp_path):
    folder = leave(tmp_path / "run")
    (tmp_path / "comparison.json").write_text(json.dumps(comparison()))
    cli.main(["card", str(folder), "--comparison", str(tmp_path)])
    text = read(folder)[1].replace("\N{NO-BREAK SPACE}", " ")
    assert "Results on the test data (4,000 rows), from runs on 800 training rows" in text
    assert "| cross-entropy | 0.500 ± 0.013 | 12.35 ± 0.01 |\n| MaxSup (this model's) | **0.920 ± 0.013** | – |" in text
    write_card(folder)
    assert "(this model's)" in read(folder)[1], "the record keeps them"


@pytest.mark.parametrize("mismatches", [[], ["seed 0: other weights"]])
def test_compare_writes_the_cards_of_its_runs(mismatches, tmp_path):
    runs = [
        {"name": f"{loss}-seed0", "loss": loss, "state": state, "point": {}, "rows": {}}
        for loss, state in (("maxsup", "finished"), ("cross_entropy", "failed"))
    ]
    for run in runs:
        write_card(leave(tmp_path / "runs" / run["name"]))
    _write_cards(comparison(runs=runs, fairness={"mismatches": mismatches}), tmp_path)
    told = ["Compared with other losses" in read(tmp_path / "runs" / run["name"])[1] for run in runs]
    assert told == [not mismatches, False]


@pytest.mark.parametrize(
    ("content", "loss", "message"),
    [
        (None, "maxsup", "comparison must be comparison.json of `maxsup-hf compare`"),
        ("{", "maxsup", "comparison must be comparison.json of `maxsup-hf compare`"),
        (json.dumps(comparison()), "focal", "must have results of the loss 'focal', it has those of cross_entropy, maxsup"),
        (json.dumps(comparison(tables={})), "maxsup", "it has those of none"),
    ],
)
def test_a_comparison_that_says_nothing_of_this_model_is_refused(content, loss, message, tmp_path, capsys):
    folder = leave(tmp_path / "run", loss={"name": loss, "kwargs": {}, "formula": "", "citation": ""})
    if content is not None:
        (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(SystemExit):
        cli.main(["card", str(folder), "--comparison", str(tmp_path / "comparison.json")])
    assert message in capsys.readouterr().err and not (folder / "README.md").exists()


# ---- what the user adds ----


def test_flags_of_the_command(tmp_path):
    folder = leave(
        tmp_path / "run", command="maxsup-hf train text-classification --model_name_or_path MODELS/minilm --seed 1"
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\nBy hand.\n")
    flags = ["--license", "apache-2.0", "--language", "en", "de", "--base_model", "me/minilm", "--dataset", "me/a", "me/b"]
    cli.main(["card", str(folder), *flags])
    for _ in range(2):  # and they stay
        found, text = read(folder)
        assert (found["license"], found["language"], found["datasets"]) == ("apache-2.0", ["en", "de"], ["me/a", "me/b"])
        assert (found["base_model"], found["base_model_relation"]) == ("me/minilm", "finetune")
        assert "By hand." in text and "fine-tuned on me/a, me/b" in text and "--model_name_or_path me/minilm --seed" in text
        write_card(folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--language", "English"], "language must be ISO 639 codes, such as en, got 'English'"),
        (["--license", "Apache 2"], "license must be a license as the Hub names it, such as apache-2.0, got 'Apache 2'"),
        (["--base_model", "/home/me/model"], "base_model must be on the Hub, as owner/name, got '/home/me/model'"),
        (["--dataset", "my birds"], "dataset must be on the Hub, as owner/name, got 'my birds'"),
        (["--example", "a text"], "example: the model in "),
    ],
)
def test_what_the_hub_would_refuse_is_refused(flags, message, tmp_path, capsys):
    folder = leave(tmp_path / "run")
    before = (folder / "run.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        cli.main(["card", str(folder), *flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == before and not (folder / "README.md").exists()


def test_an_invalid_readme_leaves_the_record_as_it_is(tmp_path, capsys):
    folder = leave(tmp_path / "run")
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    before = (folder / "run.json").read_bytes()
    with pytest.raises(SystemExit):
        cli.main(["card", str(folder), "--license", "mit"])
    assert "is not a valid model card" in capsys.readouterr().err and (folder / "run.json").read_bytes() == before


# ---- figures and the log ----


def test_figures_have_captions(tmp_path):
    folder = leave(tmp_path / "run")
    (folder / "figures").mkdir()
    for name in ("map-1", "map-2", "reliability", "zebra"):
        (folder / "figures" / f"{name}.png").write_bytes(b"")
    write_card(folder)
    text = read(folder)[1]
    shown = [text.index(f"(figures/{name}.png)") for name in ("reliability", "map-1", "map-2", "zebra")]
    assert shown == sorted(shown) and text.count(CAPTIONS["map"]) == text.count(CAPTIONS["reliability"]) == 1


def test_the_log_is_short_and_ends_with_the_last_step():
    logged = [{"step": step, "epoch": step / 50, "loss": 1 / step} for step in range(1, 101)]
    logged += [{"step": 100, "epoch": 2.0, "eval_loss": 0.5, "eval_accuracy": 0.25, "eval_nll": math.nan, "eval_runtime": 3}]
    logged += [{"step": 100, "train_runtime": 9.0, "train_loss": 7.0}]
    rows = training_log(logged)
    assert len(rows) == MOST_ROWS and rows[0]["step"] == 1
    assert rows[-1] == {"step": 100, "epoch": 2.0, "loss": 0.01, "eval_loss": 0.5, "eval_accuracy": 0.25}
    header, _, first, *_ = log_table(rows).splitlines()
    assert header == "| epoch | step | training loss | validation loss | validation accuracy |"
    assert first == "| 0.02 | 1 | 1.0000 |  |  |" and log_table(rows[:1]) == ""


# ---- nothing of this machine ----


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--train_file", "/home/me/a/train.csv"], ["--train_file", "DATA/train.csv"]),
        (["--train_file=/home/me/a.csv,/srv/b.csv"], ["--train_file=DATA/a.csv,DATA/b.csv"]),
        (["--model_name_or_path", "~/models/bert"], ["--model_name_or_path", "MODELS/bert"]),
        (["--output_dir", "/scratch/me/out/", "--seed", "1"], ["--output_dir", "out", "--seed", "1"]),
        (["--config", r"C:\Users\me\run.yaml"], ["--config", "FOLDER/run.yaml"]),
        (["--train_file", "train.csv", "--dataset_name", "me/a"], ["--train_file", "train.csv", "--dataset_name", "me/a"]),
    ],
)
def test_paths_become_placeholders(words, shown, tmp_path):
    assert with_placeholders(words) == with_placeholders(shown) == shown
    folder = leave(tmp_path / "run", command=shlex.join(["maxsup-hf", "train", "task", *words]))
    write_card(folder)
    text = read(folder)[1]
    assert shlex.join(["maxsup-hf", "train", "task", *shown]) in text
    explained = re.findall(r"^Replace `(\w+)` with ", text, re.MULTILINE)
    assert explained == [name for name in ("DATA", "MODELS", "FOLDER") if f"{name}/" in " ".join(shown)]


def test_a_long_command_is_continued_before_a_flag():
    command = "maxsup-hf train task --a 'b --c' " + " ".join(f"--flag_{i} value" for i in range(20))
    lines = in_lines(command)
    assert lines.replace(" \\\n    ", " ") == command and max(map(len, lines.splitlines())) < 120
    assert with_base_model("x --model_name_or_path=MODELS/a --b", "me/a") == "x --model_name_or_path=me/a --b"


def test_the_base_model_is_named_if_the_hub_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, saved in (("with", "me/base"), ("without", str(tmp_path)), ("bare", None)):
        (tmp_path / name).mkdir()
        if saved:
            (tmp_path / name / "config.json").write_text(json.dumps({"_name_or_path": saved}))
    sources = ["me/base", str(tmp_path / "with"), "with", "without", "bare", "/gone/model", "", None]
    assert [hub_base_model(source) for source in sources] == ["me/base"] * 3 + [None] * 5
    assert hub_base_model("/root/.cache/huggingface/hub/models--me--base/snapshots/0a1b2c") == "me/base"


# ---- a repository ----


@pytest.mark.parametrize("record", [{}, {"model_name": "old"}, {"model_name": "old", "repo_id": "me/old"}])
def test_the_card_speaks_of_the_repository_it_is_pushed_to(record, tmp_path):
    folder = leave(tmp_path / "run", **record)
    write_card(folder)
    card_for_repository(folder, "me/new")
    found, text = read(folder)
    assert "\n# new\n" in text and 'model="me/new"' in text and found["model-index"][0]["name"] == "new"
    assert "old" not in text and "full path" not in text


def test_a_name_that_was_chosen_for_this_repository_stays(tmp_path):
    folder = leave(tmp_path / "run", model_name="My model", repo_id="new")
    write_card(folder)
    card_for_repository(folder, "me/new")
    assert "\n# My model\n" in read(folder)[1]


def test_a_readme_by_hand_is_pushed_as_it_is(tmp_path):
    metadata = "license: mit\nmetrics: [f1]\nmodel-index: [{name: a, results: []}]\nbase_model: me/base"
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# Mine\n\n\nBy hand.")
    before = (tmp_path / "README.md").read_bytes()
    card_for_repository(tmp_path, "me/new")
    assert (tmp_path / "README.md").read_bytes() == before
    (tmp_path / "README.md").write_bytes(before.replace(b"me/base", b"/home/me/base"))
    card_for_repository(tmp_path, "me/new")
    found, text = read(tmp_path)
    assert (found["license"], found["metrics"]) == ("mit", ["f1"]) and "base_model" not in found and "By hand." in text


def test_a_run_whose_weights_were_removed_has_no_code(tmp_path):
    folder = leave(tmp_path / "run")
    (folder / "weights_not_kept.txt").write_text("its weights were removed")
    write_card(folder)
    assert "```python" not in read(folder)[1] and "weights of this run were not kept" in read(folder)[1]
    (folder / "model.safetensors").write_bytes(b"")
    write_card(folder)
    assert "```python" in read(folder)[1]


def test_a_setting_of_zero_is_recorded():
    """A seed of 0 is a seed; what is off or not set is left out."""
    assert _hyperparameters(SimpleNamespace(seed=0, weight_decay=0.0, bf16=False)) == {"weight_decay": 0.0, "seed": 0}


def test_a_card_counts_the_seeds_that_finished(tmp_path):
    runs = [{"state": "finished", "loss": loss, "rows": {}} for loss in ("maxsup", "maxsup", "cross_entropy")]
    found = comparison_of(comparison(runs=runs), "maxsup")
    assert found["fewest_seeds"] == 1 and f"over 1 to {len(found['seeds'])} seeds" in comparison_text(found)
