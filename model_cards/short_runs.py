"""One table of the short runs: those that are not at the accuracy that their networks reach.

python model_cards/short_runs.py        # writes model_cards/results/short_runs.md
"""

from experiments import TITLES
from store import RESULTS, comparisons
from verdicts import differences, measured

from maxsup_hf.comparison.statistics import summarise
from maxsup_hf.output.tables import Table, markdown

METRICS = {
    "accuracy": "accuracy", "chrf": "chrF", "perplexity": "perplexity", "nll": "NLL", "ece": "ECE",
    "confidence_when_wrong": "confidence when wrong", "feature_within": "within-class variation",
}  # fmt: skip
LOSSES = {"cross_entropy": "cross-entropy", "label_smoothing": "label smoothing", "maxsup": "MaxSup"}


def text() -> str:
    """A row for each comparison and metric: the mean of each loss, and MaxSup − label smoothing."""
    rows = []
    for name in (name for name in comparisons() if name not in TITLES):
        values = measured(name)
        first = True
        for metric, label in METRICS.items():
            by_loss = values.get(metric, {})
            apart = differences(values, metric, "maxsup", "label_smoothing")
            if not apart:
                continue
            means = [_mean(by_loss[loss]) if loss in by_loss else "–" for loss in LOSSES]
            rows.append([name if first else "", label, *means, _spread(apart)])
            first = False
    return markdown(Table(["comparison", "metric", *LOSSES.values(), "MaxSup − label smoothing"], rows)) + "\n"


def _mean(by_seed: dict[str, float]) -> str:
    return f"{summarise(by_seed).mean:.4f}"


def _spread(apart: list[float]) -> str:
    found = summarise(dict(enumerate(apart)))
    return f"{found.mean:+.4f} ± {found.sd:.4f}"


if __name__ == "__main__":
    (RESULTS / "short_runs.md").write_text(text(), encoding="utf-8")
