"""One table of the experiments at full accuracy, and one of the short runs.

python model_cards/overview.py        # writes overview.md and short_runs.md in model_cards/results
"""

from collections.abc import Iterable
from statistics import fmean

from experiments import TITLES
from labels import LOSSES, METRICS
from store import RESULTS, comparisons
from verdicts import differences, measured

from maxsup_hf.comparison.statistics import interval
from maxsup_hf.output.tables import Table, markdown


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
    table = markdown(Table(["comparison", "metric", *LOSSES.values(), "MaxSup − label smoothing"], rows)) + "\n"
    return table.replace("---:", "---", 1)  # the second column has words too


def _difference(apart: list[float]) -> str:
    low, high = interval(apart)
    return f"{fmean(apart):+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    for name, found in texts().items():
        (RESULTS / name).write_text(found, encoding="utf-8")
