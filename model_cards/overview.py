"""One table of the experiments at full accuracy, and one of the short runs.

python model_cards/overview.py        # writes overview.md and short_runs.md in model_cards/results
"""

from collections.abc import Iterable
from statistics import fmean

from experiments import TITLES
from store import RESULTS, comparisons
from verdicts import differences, measured

from maxsup_hf.comparison.statistics import interval
from maxsup_hf.output.tables import Table, markdown

METRICS = {
    "accuracy": "accuracy", "chrf": "chrF", "perplexity": "perplexity", "nll": "NLL", "ece": "ECE",
    "confidence_when_wrong": "confidence when wrong", "feature_within": "within-class variation", "feature_r2": "R²",
    "probe_accuracy": "accuracy of a linear probe on other data", "corrupted_accuracy": "accuracy under corruptions",
    "ood_auroc": "AUROC, own images against foreign ones", "oos_auroc": "AUROC, own sentences against foreign ones",
    "many": "accuracy, classes of more than 100 images", "medium": "accuracy, classes of 20 to 100 images",
    "few": "accuracy, classes of fewer than 20 images",
    "token_accuracy": "accuracy of the next token", "token_ece": "ECE of the next token",
    "token_confidence_when_wrong": "confidence when the next token is wrong",
    "choice2_accuracy": "accuracy, two options", "choice2_ece": "ECE, two options",
    "choice4_accuracy": "accuracy, four options", "choice4_ece": "ECE, four options",
}  # fmt: skip
LOSSES = {"cross_entropy": "cross-entropy", "label_smoothing": "label smoothing", "maxsup": "MaxSup"}


def texts() -> dict[str, str]:
    """File name -> Markdown."""
    names = list(comparisons())
    return {
        "overview.md": text([name for name in TITLES if name in names]),
        "short_runs.md": text(name for name in names if name not in TITLES),
    }


def text(names: Iterable[str]) -> str:
    """A row for each comparison and metric: the mean of each loss, and the mean of MaxSup − label smoothing with its 95 %
    interval by t over the seeds."""
    rows = []
    for name in names:
        title, values = TITLES.get(name, name), measured(name)
        for metric, label in METRICS.items():
            by_loss = values.get(metric, {})
            apart = differences(values, metric, "maxsup", "label_smoothing")
            if not apart:
                continue
            means = [f"{fmean(by_loss[loss].values()):.4f}" if loss in by_loss else "–" for loss in LOSSES]
            rows.append([title, label, *means, _difference(apart)])
            title = ""
    return markdown(Table(["comparison", "metric", *LOSSES.values(), "MaxSup − label smoothing"], rows)) + "\n"


def _difference(apart: list[float]) -> str:
    low, high = interval(apart)
    return f"{fmean(apart):+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    for name, found in texts().items():
        (RESULTS / name).write_text(found, encoding="utf-8")
