"""What is made of the folders of finished runs: tables, what was chosen, and whether the runs compare."""

import re

import pytest

from maxsup_hf.comparison import tables
from maxsup_hf.comparison.plan import Plan, share_strength
from maxsup_hf.comparison.results import UnfairError, check_fair, choose, collect
from tests.comparison.folders import leave

LOSSES = share_strength(["cross_entropy", "label_smoothing", "maxsup"], 0.1, 0.2, None, {})
ACCURACY = {"cross_entropy": 0.80, "label_smoothing": 0.81, "maxsup": 0.9}
NOISE = (0.0, 0.004, -0.003, 0.002, -0.001)


def metrics(run, wiggle=0.001):
    """Accuracies whose differences hardly vary over the seeds; the NLL differs by noise alone."""
    accuracy = ACCURACY[run.loss] + NOISE[run.seed] + wiggle * ((run.seed * (len(run.loss) + 1)) % 5)
    nll = 1 + NOISE[(run.seed + len(run.loss)) % 5]
    of = {"accuracy": accuracy, "nll": nll, "loss": nll, "ece": 0.1, "margin": 0.3, "runtime": 3.0}
    return {"eval": of, "test": of}


def make(folder, seeds=(0, 1, 2, 3), failed=(), **changes):
    plan = Plan("text-classification", LOSSES, seeds, **changes)
    for run in plan.runs():
        if run.name not in failed:
            leave(folder, run, metrics(run))
    return plan


def test_means_deviations_and_bold(tmp_path):
    found = collect(make(tmp_path), tmp_path, {}, "t")
    of = found["tables"]["shared"]
    assert found["split"] == "test" and set(of) == {
        "accuracy", "loss", "nll", "ece", "margin", "feature_within", "feature_r2", "feature_nc1",
    }  # fmt: skip
    values = [of["accuracy"]["values"]["maxsup"][str(seed)] for seed in range(4)]
    assert of["accuracy"]["summary"]["maxsup"]["mean"] == pytest.approx(sum(values) / 4)
    assert of["accuracy"]["best"] == "maxsup" and of["accuracy"]["significant"]
    assert not of["nll"]["significant"]
    assert of["ece"]["best"] is None and of["margin"]["best"] is None  # a tie; a metric that has no better end
    table = tables.results_table(found, "shared")
    assert table.header == [
        "loss", "accuracy ↑", "NLL ↓", "ECE ↓", "within-class variation", "R²",
    ]  # fmt: skip
    assert [row[0] for row in table.rows] == ["cross-entropy", "label smoothing", "MaxSup"] and table.bold == {(2, 1)}
    text = tables.markdown(found)
    line = next(line for line in text.splitlines() if line.startswith("| MaxSup"))
    assert line.split(" | ")[1] == f"**{table.rows[2][1]}**" and line.count("**") == 2 and "±" in line
    assert "paired t-test" in text and "p < 0.05" in text
    assert "Seed 3: 3 runs" in text and "weights3" in text and "same 3 batches" in text
    assert "the same α and the same schedule: α 0.1 → 0.2." in text


def test_one_table_of_differences(tmp_path):
    found = collect(make(tmp_path), tmp_path, {}, "t")
    of = found["tables"]["shared"]["accuracy"]["differences"]
    table = tables.differences_table(found, "shared")
    pairs = ["cross-entropy − label smoothing", "cross-entropy − MaxSup", "label smoothing − MaxSup"]
    assert [row[0] for row in table.rows] == [name for pair in pairs for name in (pair, "95 % interval", "p")]
    assert table.header[1] == "accuracy ↑"
    mean, interval, p = (row[1] for row in table.rows[6:9])
    assert mean == f"{of[2]['mean']:+.4f}".replace("-", "−")
    assert interval == f"[{of[2]['low']:+.4f}, {of[2]['high']:+.4f}]".replace("-", "−")
    assert p == ("< 0.0001" if of[2]["p_holm"] < 1e-4 else f"{of[2]['p_holm']:.4f}")
    significant = {3 * i for i, d in enumerate(of) if d["p_holm"] < 0.05}
    assert significant and {row for row, column in table.bold if column == 1} == significant
    assert "paired t-test" in tables.differences_note(found)


def test_too_few_seeds_are_said_and_nothing_is_bold(tmp_path):
    found = collect(make(tmp_path, seeds=(0, 1)), tmp_path, {}, "t")
    assert not any(of["significant"] for of in found["tables"]["shared"].values())
    text = tables.markdown(found)
    assert (
        "standard deviation over 2 seeds: too few" in text
        and "the paired t-test needs at least 3" in text
        and "**" not in text
    )
    assert not tables.differences_table(found, "shared").bold
    one = Plan("text-classification", LOSSES, (0,))
    text = tables.markdown(collect(one, tmp_path, {}, "t"))
    assert "One seed: too few" in text and "±" not in text.split("##")[1].split("\n\n")[1]


def test_what_is_missing_is_said_and_the_rest_is_reported(tmp_path):
    plan = make(tmp_path, failed=("maxsup-seed1", "maxsup-seed2"))
    found = collect(plan, tmp_path, {"maxsup-seed1": "status 1: error: no"}, "t")
    text = tables.markdown(found)
    assert "**The run maxsup-seed1 failed: status 1: error: no.**" in text
    assert "**1 of 12 runs have not finished: maxsup-seed2.**" in text
    of = found["tables"]["shared"]["accuracy"]
    assert of["summary"]["maxsup"]["n"] == 2 and of["summary"]["cross_entropy"]["n"] == 4
    assert not of["significant"]  # two pairs are too few
    assert "over 2 to 4 seeds, as not all runs have finished." in text and "Here nothing can be bold" in text
    assert {d["n"] for d in of["differences"] if "maxsup" in (d["first"], d["second"])} == {2}


def test_nothing_finished(tmp_path):
    plan = Plan("text-classification", LOSSES, (0,))
    found = collect(plan, tmp_path, {"maxsup-seed0": "status 2: error: no data"}, "t")
    assert "tables" not in found and "no data" in tables.markdown(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial_weights": "others"}, "seed 1: maxsup-seed1 had different initial weights than cross_entropy-seed1"),
        ({"batches": "others"}, "seed 1: maxsup-seed1 had different batches .* than cross_entropy-seed1"),
        ({"split": "eval"}, "the runs differ in split"),
        ({"torch": "1"}, "seed 1: maxsup-seed1 had different versions of libraries than cross_entropy-seed1"),
        ({"processes": 2}, "the runs differ in processes"),
    ],
)
def test_runs_that_do_not_compare(changes, message, tmp_path):
    plan = make(tmp_path, failed=("maxsup-seed1",))
    check_fair(collect(plan, tmp_path, {}, "t"))
    leave(tmp_path, next(run for run in plan.runs() if run.name == "maxsup-seed1"), metrics(plan.runs()[0]), **changes)
    found = collect(plan, tmp_path, {}, "t")
    with pytest.raises(UnfairError, match=message):
        check_fair(found)
    text = tables.markdown(found)
    assert re.search(message, text) and "Seed 0:" not in text


def test_versions_may_differ_between_seeds(tmp_path):
    plan = Plan("text-classification", LOSSES, (0, 1, 2))
    for run in plan.runs():
        leave(tmp_path, run, metrics(run), torch="2" if run.seed else "1")
    found = collect(plan, tmp_path, {}, "t")
    check_fair(found)
    said = "which differ between seeds: seed 0 with torch 1; seed 1 with torch 2; seed 2 with torch 2."
    assert said in tables.markdown(found) and "numpy" not in tables.markdown(found)


def test_told_otherwise_is_said(tmp_path):
    own = {"maxsup": {"alpha": 0.4}, "label_smoothing": {"over": "K-1"}}
    losses = share_strength(["label_smoothing", "maxsup"], 0.1, 0.2, None, own)
    plan = Plan("text-classification", losses, (0,))
    for run in plan.runs():
        leave(tmp_path, run, metrics(run))
    text = tables.markdown(collect(plan, tmp_path, {}, "t"))
    assert "Strength: label smoothing α 0.1 → 0.2; MaxSup α = 0.4." in text
    assert "--loss_kwargs: label smoothing over = K-1." in text


def test_chosen_on_validation_data_never_on_test_data(tmp_path):
    plan = Plan("text-classification", LOSSES, (0, 1), {"alpha": (0.05, 0.1, 0.4)}, hold_out_test=0.5)
    validation = {("label_smoothing", 0.4): 0.95, ("maxsup", 0.05): 0.96}
    test = {("label_smoothing", 0.05): 0.99, ("maxsup", 0.4): 0.99}  # what a choice on test data would fall for
    for run in plan.runs():
        at = (run.loss, run.kwargs.get("alpha"))
        of = {"eval": {"accuracy": validation.get(at, 0.9)}, "test": {"accuracy": test.get(at, 0.8)}}
        leave(tmp_path, run, of)
    found = collect(plan, tmp_path, {}, "t")
    assert {loss: of["kwargs"].get("alpha") for loss, of in found["chosen"].items()} == {
        "cross_entropy": None, "label_smoothing": 0.4, "maxsup": 0.05,
    }  # fmt: skip
    means = {loss: of["mean"] for loss, of in found["tables"]["chosen"]["accuracy"]["summary"].items()}
    assert means == pytest.approx({"cross_entropy": 0.8, "label_smoothing": 0.8, "maxsup": 0.8})
    assert len(found["chosen"]["maxsup"]["candidates"]) == 3  # 0.1 is the shared setting
    assert {loss: of["n"] for loss, of in found["tables"]["shared"]["accuracy"]["summary"].items()} == dict.fromkeys(
        LOSSES, 2
    )
    text = tables.markdown(found)
    assert "label smoothing (α 0.4 → 0.8)" in text and "on the validation data, never on the test data" in text


def test_a_setting_whose_runs_are_not_all_there_is_not_chosen():
    def run(seed, kwargs, accuracy):
        state = "missing" if accuracy is None else "finished"
        found = {"loss": "maxsup", "seed": seed, "kwargs": kwargs, "point": kwargs, "state": state}
        return found | {"metrics": {"eval": {"accuracy": accuracy}}}

    runs = [
        run(0, {"alpha": 0.1}, 0.5),
        run(1, {"alpha": 0.1}, 0.5),
        run(0, {"alpha": 0.2}, 0.9),
        run(1, {"alpha": 0.2}, None),
    ]
    assert choose(runs, "accuracy")["maxsup"]["kwargs"] == {"alpha": 0.1}


def test_what_is_collected_of_a_run(tmp_path):
    found = collect(make(tmp_path), tmp_path, {}, "t")
    run = found["runs"][0]
    assert run["command"] == "maxsup-hf train cross_entropy-seed0" and run["versions"] == {"torch": "2", "numpy": "2"}
    assert not any("runtime" in key for entry in run["history"] for key in entry)
