"""The first line of a report: what it says of which figures, and that it is the first everywhere."""

import json
import math

import pytest

from maxsup_hf import cli
from maxsup_hf.comparison import report, tables
from maxsup_hf.comparison.plan import Plan, keep_plan, share_strength
from maxsup_hf.comparison.results import collect
from maxsup_hf.comparison.verdict import verdict
from tests.comparison.folders import leave

MANY = {"wrong": [60, *range(18, 0, -2)], "rows": [100] * 10}
FEW = {"wrong": [9, 1, 0, 0, 0, 0, 0, 0, 0, 0], "rows": [100] * 10}
STOPPED = {"wrong": [60, 5, 0, 0, 0, 0, 0, 0, 0, 0], "rows": [100, 100, 0, 0, 0, 0, 0, 0, 0, 0]}
PERPLEXITY = {"task": "language-modeling", "metric": "perplexity"}
NOISE = (0.001, -0.0015, 0.0005)


def compared(folder, difference, rows=MANY, *, losses=("label_smoothing", "maxsup"), metric="confidence_when_wrong", **more):
    """A comparison in which MaxSup is `difference` above the other losses, plus `noise` of each seed."""
    noise, own, seeds = more.pop("noise", NOISE), more.pop("own", {}), more.pop("seeds", (0, 1, 2))
    plan = Plan(more.pop("task", "text-classification"), share_strength(losses, 0.1, 0.2, None, own), seeds, **more)
    for run in plan.runs():
        value = 0.5 + (difference + noise[run.seed] if run.loss == "maxsup" else 0)
        leave(folder, run, {split: {metric: value} for split in ("eval", "test")}, training_rows=rows)
    return collect(plan, folder, {}, "t")


WIDE = (0.1, -0.15, 0.05)
SAID = [
    (
        -0.05,
        {},
        "lowers",
        "Will MaxSup help? It lowers confidence when wrong by 0.0500 [0.0467, 0.0533], compared",
    ),
    (-0.05, {}, "lowers", "60.0 % early (first tenth of the steps), 2.0 % at the end (last tenth)"),
    (0.05, {}, "raises", "It raises confidence when wrong by 0.0500"),
    (
        0.0,
        {},
        "same",
        "For confidence when wrong, MaxSup and label smoothing are the same loss for you: they differ by",
    ),
    (0.0, {"noise": WIDE}, "undecided", "Undecided: these runs do not tell whether MaxSup changes confidence when wrong."),
    (0.0, {"noise": WIDE}, "undecided", "Confidence when wrong, MaxSup − label smoothing: +0.0000 [−0.3286, +0.3286]"),
    (0.0, {"noise": WIDE, "rows": FEW}, "same", "MaxSup and label smoothing are the same loss for you."),
    (-0.05, {"rows": FEW}, "lowers", "9.0 % early (first tenth of the steps), 0.0 % at the end"),  # what is measured counts
    (-0.05, {"rows": STOPPED}, "lowers", "60.0 % early (first tenth of the steps), 5.0 % at the end"),
    (-0.05, {"rows": None}, "lowers", "how many was not recorded"),  # as in version 0.1
    (-0.05, {"seeds": (0,)}, "undecided", "1 seed is too few"),
    (-0.05, {"seeds": (0,)}, "undecided", "−0.0490 (test data, 1 seed)"),
    (-0.05, {"seeds": (0,), "rows": FEW}, "same", "are the same loss for you."),
    (-0.05, {"seeds": (0, 1)}, "undecided", "2 seeds are too few"),
    (0.0, {"noise": (math.nan,) * 3}, "undecided", "Undecided: no seed has wrong predictions of both losses, so confidence"),
    (0.0, {"noise": (0.01, math.nan, 0.02)}, "undecided", "only 2 of 3 seeds can be compared, which are too few to tell"),
    (-0.05, {"noise": (0, 0, 0)}, "undecided", "−0.0500 [−0.0500, −0.0500]"),  # no spread to judge by
    (0.0, {"noise": WIDE, "rows": FEW, "own": {"maxsup": {"alpha": 0.4}}}, "undecided", "differ on all training rows."),
    (0.0, {"noise": WIDE, "rows": FEW, "flags": ("--class_weights", "balanced")}, "undecided", "on all training rows"),
    (-0.5, PERPLEXITY, "lowers", "It lowers perplexity by 0.5000"),
    (-0.5, PERPLEXITY, "lowers", "the training tokens that training gets wrong"),
    (0.0, PERPLEXITY, "undecided", "whether MaxSup changes perplexity"),
]


@pytest.mark.parametrize(("difference", "more", "says", "part"), SAID)
def test_what_is_said(difference, more, says, part, tmp_path):
    found = compared(tmp_path, difference, **more)["verdict"]
    (judged,) = found["pairs"]
    assert judged["says"] == says and (judged["first"], judged["second"]) == ("maxsup", "label_smoothing")
    assert part in found["line"]


def test_other_pairs_are_named(tmp_path):
    line = compared(tmp_path / "a", -0.05, losses=("cross_entropy", "maxsup", "focal"))["verdict"]["line"]
    assert line.startswith(
        "This comparison has no pair of MaxSup and label smoothing. Training rows that training gets wrong: 60"
    )
    assert "MaxSup − cross-entropy −0.0500 [−0.0533, −0.0467]; MaxSup − focal −0.0500 [" in line
    line = compared(tmp_path / "b", -0.05, losses=("cross_entropy", "focal"))["verdict"]["line"]
    assert "cross-entropy − focal +0.0000 [" in line
    assert "Only one loss" in compared(tmp_path / "c", -0.05, losses=("focal",))["verdict"]["line"]
    nothing = collect(
        Plan("text-classification", share_strength(["maxsup", "focal"], 0.1, 0.2, None, {}), (0,)), tmp_path, {}, "t"
    )
    assert "no two losses have finished runs" in nothing["verdict"]["line"]


def test_it_is_first_in_every_report(tmp_path, capsys):
    losses = share_strength(["label_smoothing", "maxsup"], 0.1, 0.2, None, {})
    plan = Plan("text-classification", losses, (0, 1, 2))
    keep_plan(tmp_path, plan)
    found = compared(tmp_path, -0.05)
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "--report_only", str(tmp_path)])
    assert end.value.code == 0
    line = found["verdict"]["line"]
    for text in (capsys.readouterr().out, (tmp_path / "table.md").read_text(encoding="utf-8")):
        assert text.splitlines()[2] == line  # below the heading
    assert json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["verdict"]["line"] == line
    assert (tmp_path / "comparison.json").read_text(encoding="utf-8").lstrip("{\n ").startswith('"verdict"')
    page = (tmp_path / report.REPORT).read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert line in page[page.index("<h1>") :].partition("</p>")[0]
    assert verdict(found)["line"] == line and line in tables.markdown(found)
    assert not list(tmp_path.glob("*.unfinished"))
