"""Plot what MaxSup did in the experiments at full accuracy, beside label smoothing and cross-entropy.

    python model_cards/figures.py        # writes losses.png and features.png in model_cards/results

losses.png: a row is an experiment, a point the mean over the seeds with its 95 % interval by t. Experiments without results
are left out. features.png: a panel is a loss, a point a test image; see planes.py.
"""

from statistics import fmean

from experiments import REPORTED, TITLES
from store import RESULTS, comparisons, read
from verdicts import measured

from maxsup_hf.comparison.statistics import interval

SHOWN = {"accuracy": "accuracy ↑", "ece": "ECE ↓", "confidence_when_wrong": "confidence when wrong"}
# Colours of Okabe & Ito (2008), as in the reports
LOOKS = {
    "cross_entropy": ("cross-entropy", "#777777", "s"),
    "label_smoothing": ("label smoothing", "#e69f00", "o"),
    "maxsup": ("MaxSup", "#0072b2", "D"),
}
CLASS_COLORS = ("#d55e00", "#0072b2", "#009e73")
Point = tuple[float, float, float]


def points(metric: str) -> dict[str, dict[str, Point]]:
    """Experiment -> loss -> mean over the seeds and the ends of its 95 % interval."""
    found = {}
    for name in TITLES.keys() & comparisons().keys():
        by_loss = measured(name).get(metric, {})
        if by_loss:
            found[name] = {
                loss: (fmean(of.values()), *interval(list(of.values()))) for loss, of in by_loss.items() if loss in LOOKS
            }
    return {name: found[name] for name in TITLES if name in found}


def losses() -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    by_metric = {metric: points(metric) for metric in SHOWN}
    names = list(by_metric["accuracy"])
    figure = Figure(figsize=(10, 1.5 + 0.75 * len(names)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, (metric, title) in zip(panels, SHOWN.items(), strict=True):
        for name, by_loss in by_metric[metric].items():
            for i, (loss, (label, color, marker)) in enumerate(LOOKS.items()):
                mean, low, high = by_loss[loss]
                axes.errorbar(
                    mean, names.index(name) + 0.22 * (i - 1), xerr=[[mean - low], [high - mean]], fmt=marker, color=color,
                    markersize=7, capsize=3, linewidth=1.5, label=label if name == names[0] else None,
                )  # fmt: skip
        axes.set_title(title, fontsize=12)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0, labelsize=11)
        axes.spines[["top", "right", "left"]].set_visible(False)
        for between in range(1, len(names)):
            axes.axhline(between - 0.5, color="#cccccc", linewidth=0.6)
    panels[0].set_yticks(range(len(names)), [TITLES[name] for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    figure.savefig(RESULTS / "losses.png", dpi=150, metadata={"Software": None})


def features() -> None:
    from matplotlib.figure import Figure

    by_loss = read(RESULTS / f"{REPORTED}-plane.json")["points"]
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    panels = figure.subplots(1, len(by_loss), sharex=True, sharey=True)
    for axes, (loss, by_class) in zip(panels, by_loss.items(), strict=True):
        for (name, points), color, marker in zip(by_class.items(), CLASS_COLORS, "o^s", strict=True):
            axes.scatter(*zip(*points, strict=True), s=14, alpha=0.6, linewidths=0, color=color, marker=marker, label=name)
        axes.set_title(LOOKS[loss][0], fontsize=13)
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_color("#cccccc")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=12, markerscale=1.6)
    figure.savefig(RESULTS / "features.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    losses()
    features()
