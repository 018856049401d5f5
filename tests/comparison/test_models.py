"""Which models stay on disk, and what is said of the others."""

import json

import pytest

from maxsup_hf import cli
from maxsup_hf.comparison import cli as compare_cli
from maxsup_hf.comparison.execute import execute
from maxsup_hf.comparison.models import model_bytes, models_line
from maxsup_hf.comparison.plan import Plan, is_finished, keep_plan, load_plan, run_folder
from maxsup_hf.comparison.results import collect
from tests.comparison.folders import leave

# The best on validation data is never the best on test data.
ACCURACY = {"cross_entropy-seed0": 0.7, "cross_entropy-seed1": 0.9, "maxsup-seed0": 0.8, "maxsup-seed1": 0.8}
BEST = ["cross_entropy-seed1", "maxsup-seed0"]  # of equally good ones the first


def plan(save_models, seeds=(0, 1)):
    return Plan("text-classification", {"cross_entropy": {}, "maxsup": {"alpha": 0.1}}, seeds, save_models=save_models)


def finish(folder, runs):
    for run in runs:
        accuracy = ACCURACY[run.name]
        leave(folder, run, {"eval": {"accuracy": accuracy}, "test": {"accuracy": 1 - accuracy}})
        place = run_folder(folder, run)
        checkpoint = place / "checkpoint-3"
        checkpoint.mkdir()
        for path in (place / "model.safetensors", checkpoint / "model.safetensors", place / "tokenizer.json"):
            path.write_bytes(bytes(500_000))


def kept(folder, of):
    return [run.name for run in of.runs() if model_bytes(run_folder(folder, run))]


@pytest.mark.parametrize(
    ("save_models", "names", "line"),
    [
        ("all", sorted(ACCURACY), "models: those of all 4 finished runs, 4.0 MB in "),
        ("best", BEST, "models: maxsup-seed0, cross_entropy-seed1, 2.0 MB in "),
        ("none", [], "models: none kept"),
    ],
)
def test_models_of_finished_runs(save_models, names, line, tmp_path):
    of = plan(save_models)
    finish(tmp_path, of.runs())
    before = collect(of, tmp_path, {}, "t")
    assert execute(of, tmp_path, 1) == {}  # continues a comparison that was interrupted after its last run
    assert sorted(kept(tmp_path, of)) == names
    assert models_line(of, tmp_path).startswith(line)
    found = collect(of, tmp_path, {}, "t")
    assert sorted(run["name"] for run in found["runs"] if run["model_bytes"]) == names
    assert found["tables"] == before["tables"] and all(is_finished(tmp_path, run) for run in of.runs())
    for run in of.runs():
        place = run_folder(tmp_path, run)
        assert (place / "tokenizer.json").exists() and (place / "checkpoint-3").exists() == (run.name in names)
        note = place / "weights_not_kept.txt"
        assert note.exists() == (run.name not in names)
        if note.exists():
            assert f"--save_models {save_models}" in note.read_text() and f"maxsup-hf train {run.name}" in note.read_text()


def test_a_better_run_that_comes_later_takes_the_place(tmp_path):
    first, grown = plan("best", (0,)), plan("best")
    finish(tmp_path, first.runs())
    execute(first, tmp_path, 1)
    assert kept(tmp_path, first) == ["cross_entropy-seed0", "maxsup-seed0"]
    finish(tmp_path, [run for run in grown.runs() if run.seed == 1])
    execute(grown, tmp_path, 1)
    assert kept(tmp_path, grown) == ["maxsup-seed0", "cross_entropy-seed1"]


def test_without_the_flag_a_comparison_goes_on_as_it_began(tmp_path):
    def asked(*flags):
        words = ["image-classification", "--output_dir", str(tmp_path), *flags]
        args, rest = compare_cli.parser(cli.tasks()).parse_known_args(words)
        return compare_cli.make_plan(args, args.task, rest)[0].save_models

    assert asked() == "best" and asked("--save_models", "none") == "none"
    assert asked("--save_strategy", "epoch") == asked("--save_strategy=steps") == "all"
    assert asked("--save_strategy", "no") == "best" and asked("--save_strategy", "epoch", "--save_models", "best") == "best"
    keep_plan(tmp_path, plan("none"))
    assert asked() == "none" and asked("--save_models", "best") == "best"
    written = json.loads((tmp_path / "plan.json").read_text())
    del written["save_models"]  # as version 0.1 wrote it, when all models were kept
    (tmp_path / "plan.json").write_text(json.dumps(written))
    assert asked() == "all" and load_plan(tmp_path) == plan("all")
    finish(tmp_path, plan("all").runs())
    keep_plan(tmp_path, plan("best"))  # nothing that was measured depends on it


def test_who_needs_the_weights_says_in_one_line_why_they_are_gone(tmp_path, capsys):
    of = plan("none", (0,))
    finish(tmp_path, of.runs())
    execute(of, tmp_path, 1)
    folder = run_folder(tmp_path, of.runs()[0])
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForSequenceClassification"]})
    )
    rows = tmp_path / "rows.csv"
    rows.write_text("text\nhello\n")
    for command in (
        ["predict", folder, "--test_file", rows],
        ["analyze", folder],
        ["push", folder, "me/x"],
        ["train", "text-classification", "--model_name_or_path", folder],
        ["compare", "--report_only", tmp_path, "--save_models", "none"],
    ):
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in command])
        assert end.value.code in (1, 2)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error:") and ("were removed by" in said or "--report_only removes nothing" in said)
