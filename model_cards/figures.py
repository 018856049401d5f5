"""Plot what MaxSup did in the experiments at full accuracy, beside label smoothing and cross-entropy.

    python model_cards/figures.py        # writes losses.png and features.png in model_cards/results

losses.png: a row is an experiment, a point the mean over the seeds with its 95 % interval by t. Accuracy differs more
between experiments than between losses, so it is shown as the difference from cross-entropy, paired by seed. Experiments
without results are left out. features.png: a panel is a loss, a point a test image; see planes.py.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from experiments import REPORTED, TITLES
from labels import LOSSES
from store import RESULTS, comparisons, read
from verdicts import Values, differences, measured

from maxsup_hf.comparison.statistics import interval

BASE = "cross_entropy"
# Colours of Okabe & Ito (2008) and markers, as in the reports
LOOKS = {BASE: ("#777777", "s"), "label_smoothing": ("#e69f00", "o"), "maxsup": ("#0072b2", "D")}
CLASS_COLORS = ("#d55e00", "#0072b2", "#009e73")


def difference_in_points(values: Values, loss: str) -> list[float]:
    """Accuracy − that of cross-entropy, in percentage points, for each seed."""
    return [100 * apart for apart in differences(values, "accuracy", loss, BASE)]


def value_of(metric: str) -> Callable[[Values, str], list[float]]:
    return lambda values, loss: list(values[metric][loss].values())


# Title of a panel -> what is drawn of a comparison's values and a loss
PANELS: dict[str, Callable[[Values, str], list[float]]] = {
    "accuracy ↑ against cross-entropy,\nin percentage points": difference_in_points,
    "calibration error (ECE) ↓": value_of("ece"),
    "confidence when wrong": value_of("confidence_when_wrong"),
}


def losses() -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = comparisons()
    by_name = {name: measured(name) for name in TITLES if name in found}
    by_name = {name: values for name, values in by_name.items() if "accuracy" in values}
    figure = Figure(figsize=(10, 1.9 + 0.75 * len(by_name)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (title, of) in zip(panels, PANELS.items(), strict=True):
        for row, values in enumerate(by_name.values()):
            for i, (loss, label) in enumerate(LOSSES.items()):
                _point(axes, of(values, loss), row + 0.22 * (i - 1), loss, None if row else label)
        axes.set_title(title, fontsize=12)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0, labelsize=11)
        axes.spines[["top", "right", "left"]].set_visible(False)
        for between in range(1, len(by_name)):
            axes.axhline(between - 0.5, color="#cccccc", linewidth=0.6)
    panels[0].axvline(0, color="#777777", linewidth=1, zorder=1)
    panels[0].set_yticks(range(len(by_name)), [TITLES[name].replace(", ", ",\n") for name in by_name])
    panels[0].set_ylim(len(by_name) - 0.5, -0.5)
    handles, labels = panels[-1].get_legend_handles_labels()
    legend = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 11}
    figure.legend(handles, labels, title="mean of three seeds, and its 95 % interval", **legend)
    figure.savefig(RESULTS / "losses.png", dpi=150, metadata={"Software": None})


def _point(axes: Any, values: Sequence[float], y: float, loss: str, label: str | None) -> None:
    color, marker = LOOKS[loss]
    mean, (low, high) = fmean(values), interval(list(values))
    axes.errorbar(
        mean, y, xerr=[[mean - low], [high - mean]], fmt=marker, color=color, markersize=7, capsize=3, linewidth=1.5,
        label=label,
    )  # fmt: skip


def features() -> None:
    from matplotlib.figure import Figure

    by_loss = read(RESULTS / f"{REPORTED}-plane.json")["points"]
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    panels = figure.subplots(1, len(by_loss), sharex=True, sharey=True)
    for axes, (loss, by_class) in zip(panels, by_loss.items(), strict=True):
        for (name, points), color, marker in zip(by_class.items(), CLASS_COLORS, "o^s", strict=True):
            axes.scatter(*zip(*points, strict=True), s=14, alpha=0.6, linewidths=0, color=color, marker=marker, label=name)
        axes.set_title(LOSSES[loss], fontsize=13)
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_color("#cccccc")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=12, markerscale=1.6)
    figure.savefig(RESULTS / "features.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    losses()
    features()
