"""A metric that runs report needs a record to appear in tables, reports and cards, and nothing else."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib (pip install -e '.[analysis]')")

from maxsup_hf.analysis.sections import metrics_section
from maxsup_hf.comparison import report
from maxsup_hf.comparison.plan import Plan
from maxsup_hf.comparison.results import collect
from maxsup_hf.comparison.tables import results_table
from maxsup_hf.hub.card import write_card
from maxsup_hf.metrics import Metric, _records, register_metrics
from tests.comparison.folders import leave

RECORD = {
    "model": {"class": "M", "parameters": 1}, "devices": {"count": 1, "kind": "CPU"}, "steps": 1, "versions": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def new_metric(monkeypatch):
    for name in ("METRICS", "_BY_KEY"):
        monkeypatch.setattr(_records, name, dict(getattr(_records, name)))
    register_metrics(Metric("top5", "top-5", "top-5 accuracy", higher_is_better=True, formula="…", rank=25))


def test_in_a_comparison(tmp_path):
    plan = Plan("text-classification", {"cross_entropy": {}, "maxsup": {"alpha": 0.1}}, (0, 1, 2))
    for run in plan.runs():
        top5 = 0.9 + 0.01 * run.seed + (0.02 + 0.001 * run.seed if run.loss == "maxsup" else 0)
        leave(tmp_path, run, {split: {"loss": 1.0, "top5": top5} for split in ("eval", "test")})
    found = collect(plan, tmp_path, {}, "t")
    table = results_table(found, "shared")
    column = table.header.index("top-5 ↑")
    assert table.header.index("loss ↓") < column < table.header.index("within-class variation")
    assert table.rows[1][column] == "0.9310 ± 0.0110" and (1, column) in table.bold
    page = report.write(found, tmp_path).read_text(encoding="utf-8")
    assert "top-5 ↑: each run" in page and (tmp_path / "figures" / "shared-top5.svg").exists()


def test_in_an_analysis():
    def seen(name, top5):
        measured = SimpleNamespace(metrics={"nll": 1.0, "top5": top5}, geometry={}, labels=[0, 1])
        return SimpleNamespace(subject=SimpleNamespace(name=name), measured=measured)

    metrics, _ = metrics_section([seen("a", 0.5), seen("b", 0.25)], []).tables
    assert ["top-5 accuracy ↑", "0.5", "0.25"] in metrics.rows


def test_in_a_card(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    (tmp_path / "all_results.json").write_text(json.dumps({"eval_top5": 0.95}))
    assert "| top-5 ↑ | 0.95 |" in write_card(tmp_path).read_text(encoding="utf-8")
