"""Plot what MaxSup did in the experiments at full accuracy, beside label smoothing and cross-entropy.

    python model_cards/figures.py        # writes losses.png, alphas.png and features.png in model_cards/results

losses.png: a row is an experiment, a point the mean over the seeds with its 95 % interval by t. Accuracy differs more
between experiments than between losses, so it is shown as the difference from cross-entropy, paired by seed. Experiments
without results are left out, and searches for α, which alphas.png shows.
features.png: a panel is a loss, a point a test image; see planes.py.
"""

from collections.abc import Callable, Mapping, Sequence
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
    by_name = {name: measured(name) for name in TITLES if name in found and not found[name]["grid"]}
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
    _save(figure, panels[-1], "losses.png", "mean of three seeds, and its 95 % interval")


def _point(axes: Any, values: Sequence[float], y: float, loss: str, label: str | None) -> None:
    color, marker = LOOKS[loss]
    mean, (low, high) = fmean(values), interval(list(values))
    axes.errorbar(
        mean, y, xerr=[[mean - low], [high - mean]], fmt=marker, color=color, markersize=7, capsize=3, linewidth=1.5,
        label=label,
    )  # fmt: skip


# Title of a panel -> split and metric
OVER_ALPHA = {
    "accuracy on validation data ↑": ("eval", "accuracy"),
    "calibration error (ECE) ↓": ("test", "ece"),
    "confidence when wrong": ("test", "confidence_when_wrong"),
}


def alphas() -> None:
    from matplotlib.figure import Figure

    searched = {name: found for name, found in comparisons().items() if name in TITLES and found["grid"]}
    figure = Figure(figsize=(10, 0.8 + 2.6 * len(searched)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)
    panels = figure.subplots(len(searched), len(OVER_ALPHA), sharex=True, squeeze=False)
    for row, (name, found) in zip(panels, searched.items(), strict=True):
        row[0].set_ylabel(TITLES[name].removeprefix("own α, "), fontsize=12)
        for axes, (split, metric) in zip(row, OVER_ALPHA.values(), strict=True):
            _over_alpha(axes, found, split, metric)
    for first, last, title in zip(panels[0], panels[-1], OVER_ALPHA, strict=True):
        first.set_title(title, fontsize=12)
        last.set_xlabel("α at the start; twice that at the end")
    title = "mean of three seeds, and its 95 % interval; ring: the α that validation accuracy chose"
    _save(figure, panels[0, 0], "alphas.png", title)


def by_alpha(found: Mapping[str, Any], loss: str, split: str, metric: str) -> dict[float | None, list[float]]:
    """α at the start -> the metric of each seed. The α of cross-entropy is `None`."""
    values: dict[float | None, list[float]] = {}
    for run in found["runs"]:
        if run["loss"] == loss:
            alpha = run["point"].get("alpha", found["losses"][loss].get("alpha"))
            values.setdefault(alpha, []).append(run["metrics"][split][metric])
    return dict(sorted(values.items()))


def _over_alpha(axes: Any, found: Mapping[str, Any], split: str, metric: str) -> None:
    """One metric of each loss against α, side by side. The α that validation data chose has a ring."""
    (of_base,) = by_alpha(found, BASE, split, metric).values()
    axes.axhline(fmean(of_base), color=LOOKS[BASE][0], label=LOSSES[BASE])
    axes.axhspan(*interval(of_base), color=LOOKS[BASE][0], alpha=0.15, linewidth=0)
    for loss, aside in (("label_smoothing", 0.96), ("maxsup", 1.04)):
        color, marker = LOOKS[loss]
        values = by_alpha(found, loss, split, metric)
        for alpha, of in values.items():
            _vertical(axes, alpha * aside, of, color)
        means = {alpha: fmean(of) for alpha, of in values.items()}
        at = [alpha * aside for alpha in means]
        axes.plot(at, means.values(), f"{marker}-", color=color, markersize=6, label=LOSSES[loss])
        best = found["chosen"][loss]["kwargs"]["alpha"]
        axes.plot(best * aside, means[best], "o", markersize=14, fillstyle="none", color="#222222")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(means), [f"{alpha:g}" for alpha in means])
    axes.minorticks_off()
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _vertical(axes: Any, x: float, values: list[float], color: str) -> None:
    low, high = interval(values)
    axes.plot([x, x], [low, high], "_-", color=color, linewidth=1.2, markersize=7)


def _save(figure: Any, axes: Any, name: str, title: str | None = None, fontsize: int = 11, **legend: Any) -> None:
    """Save a figure with a legend below it of what `axes` shows."""
    handles, labels = axes.get_legend_handles_labels()
    legend |= {"title": title, "fontsize": fontsize, "loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(handles, labels, **legend)
    figure.savefig(RESULTS / name, dpi=150, metadata={"Software": None})


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
    _save(figure, panels[0], "features.png", fontsize=12, markerscale=1.6)


if __name__ == "__main__":
    losses()
    alphas()
    features()
