"""Figures of trained classifiers: one function each, from plain arrays to a matplotlib Figure.

Colours are those of Okabe & Ito (2008), told apart with any colour vision; line styles, markers and hatches say the same in
greyscale print. A loss looks the same in every figure, and losses always stand in the same order. Figures are small, 4.2
inches wide: the report sets them side by side where there is room, and below each other on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install 'maxsup-hf[analysis]'") from error

from maxsup_hf.metrics import ReliabilityCurve

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#777777"
WIDTH, HEIGHT = 4.2, 3.1  # inches
LOOK: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "maxsup_hf",  # the same figure is the same file
    "figure.constrained_layout.use": True,
}


class Style(NamedTuple):
    """How one loss, or one model, is drawn everywhere."""

    color: str
    linestyle: Any
    marker: str
    hatch: str


LOSS_STYLES: dict[str, Style] = {
    "cross_entropy": Style(BLACK, "-", "o", ""),
    "label_smoothing": Style(ORANGE, "--", "s", "//"),
    "online_label_smoothing": Style(SKY, "-.", "^", "\\\\"),
    "zipf_label_smoothing": Style(PURPLE, ":", "v", ".."),
    "maxsup": Style(BLUE, "-", "D", "xx"),
    "logit_penalty": Style(GREEN, "--", "P", "++"),
    "confidence_penalty": Style(VERMILION, "-.", "X", "oo"),
    "focal": Style(VERMILION, ":", "<", "--"),
    "poly": Style(GREEN, ":", ">", "||"),
    "z_loss": Style(PURPLE, "--", "h", "**"),
    "logit_norm": Style(SKY, ":", "p", "OO"),
    "ls_regularization": Style(ORANGE, ":", "8", "///"),
    "ls_error_amplification": Style(ORANGE, "-.", "*", "\\\\\\"),
}
# For what is no loss of this list: losses of a user's own, models of which it is not known what they were trained with.
# No yellow, which white paper swallows; line and marker change from one to the next, for greyscale.
OTHER_MARKERS = "dH1*+."
OTHER_STYLES = tuple(
    Style(
        (GREY, GREEN, PURPLE, VERMILION, SKY)[i % 5], ("-", "--", ":")[i % 3], OTHER_MARKERS[i % 6], ("/", "\\", ".")[i % 3]
    )
    for i in range(15)
)
RIGHT, WRONG = Style(BLUE, "-", "o", ""), Style(VERMILION, "--", "X", "////")
CLASS_STYLES = (Style(BLUE, "-", "o", ""), Style(ORANGE, "--", "s", ""), Style(BLACK, ":", "^", ""))


def loss_order(losses: Sequence[str]) -> list[str]:
    """Distinct names of losses in the order of every figure and table; others after ours, by name."""
    ours = list(LOSS_STYLES)
    return sorted(set(losses), key=lambda name: (ours.index(name) if name in LOSS_STYLES else len(ours), name))


def styles(losses: Sequence[str | None]) -> list[Style]:
    """A style for each of several models, by the losses that they were trained with.

    A loss of ours has its own style; the next model with the same loss keeps the colour, with another line and marker.

    Args:
        losses: name of each model's loss, `None` where it is not known.
    """
    found: list[Style] = []
    others = iter(OTHER_STYLES * (1 + len(losses) // len(OTHER_STYLES)))
    for i, loss in enumerate(losses):
        before = 0 if loss is None else list(losses[:i]).count(loss)
        style = LOSS_STYLES.get(loss or "")
        if style is None:
            same = [found[k] for k in range(i) if loss is not None and losses[k] == loss]
            style = same[0] if same else next(others)
        if before:
            dashes = (0, (3 + 2 * before, 1, 1, 1))
            style = Style(style.color, dashes, OTHER_MARKERS[i % 6], style.hatch + "-" * before)
        found.append(style)
    return found


P = ParamSpec("P")


def figure(
    width: float = WIDTH, height: float = HEIGHT, **axes: Any
) -> Callable[[Callable[Concatenate[Axes, P], None]], Callable[P, Figure]]:
    """Decorator that makes of a function that draws on an Axes one that returns the Figure, in the look of all others.

    Args:
        width, height: inches.
        axes: of `Figure.add_subplot`.
    """

    def decorate(draw: Callable[Concatenate[Axes, P], None]) -> Callable[P, Figure]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
            with rc_context(LOOK):
                fig = Figure(figsize=(width, height))
                draw(fig.add_subplot(**axes), *args, **kwargs)
                return fig

        return drawn

    return decorate


def save(fig: Figure, folder: str | Path, name: str) -> Path:
    """Write `name.png` (200 dpi) and `name.svg` into `folder`, which is made. Returns the path of the SVG."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(LOOK):
        fig.savefig(folder / f"{name}.png", dpi=200, facecolor="white")
        fig.savefig(folder / f"{name}.svg", dpi=200, facecolor="white", metadata={"Date": None})
    return folder / f"{name}.svg"


# ---- one model against another ----


@figure(height=3.9)
def reliability(ax: Axes, curves: Sequence[ReliabilityCurve], names: Sequence[str], losses: Sequence[str | None]) -> None:
    """Reliability diagram: accuracy against confidence, and below it how many rows have that confidence.

    Args:
        curves: of each model; empty bins are left out.
        names: of the models.
        losses: as in `styles`.
    """
    below = ax.inset_axes((0, -0.42, 1, 0.26))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 1)), zorder=0)
    for curve, name, style in zip(curves, names, styles(losses), strict=True):
        filled = curve.rows > 0
        line: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle}
        ax.plot(curve.confidence[filled], curve.accuracy[filled], marker=style.marker, label=name, **line)
        below.stairs(curve.rows / curve.rows.sum(), curve.edges, **line)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", xticklabels=[])
    below.set(xlim=(0, 1), ylim=(0, None), xlabel="confidence", ylabel="share\nof rows")
    _legend_above(ax, len(names))


@figure(height=3.1)
def within_class(
    ax: Axes,
    values: Sequence[ArrayLike],
    names: Sequence[str],
    losses: Sequence[str | None],
    classes: Sequence[str],
    most: int = 25,
) -> None:
    """Within-class variation 1 − ‖μ_k‖² of each class (see `maxsup_hf.metrics.FeatureGeometry`).

    Up to `most` classes stand beside their names; more of them as curves, each model's classes sorted by its own values.

    Args:
        values: (K,) of each model; NaN for a class without a sample.
        names: of the models.
        losses: as in `styles`.
        classes: K names.
    """
    arrays = [np.asarray(v, dtype=np.float64) for v in values]
    drawn = list(zip(arrays, names, styles(losses), strict=True))
    if len(classes) <= most:
        order = np.argsort(np.nan_to_num(np.nanmean(_some(arrays), axis=0), nan=np.inf), kind="stable")
        _figure(ax).set_size_inches(WIDTH, max(HEIGHT, 1 + 0.2 * len(classes)))
        for v, name, style in drawn:
            ax.plot(v[order], np.arange(len(order)), color=style.color, marker=style.marker, linestyle="none", label=name)
        ax.set(yticks=np.arange(len(order)), yticklabels=[_short(classes[k]) for k in order])
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set(xlabel="within-class variation", xlim=(0, None))
    else:
        for v, name, style in drawn:
            rising = np.sort(v[~np.isnan(v)])
            line: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
            ax.plot(np.arange(len(rising)), rising, label=name, markevery=max(1, len(rising) // 8), **line)
        ax.set(xlabel="classes, each model's sorted by variation", ylabel="within-class variation", ylim=(0, None))
    _legend_above(ax, len(names))


@figure()
def spread(ax: Axes, values: Mapping[str, Sequence[float]], label: str) -> None:
    """A metric of several runs for each loss: a mark for each run, and mean ± standard deviation beside them.

    Args:
        values: loss -> its runs' values, NaN where a run has none.
        label: of the metric.
    """
    losses = loss_order(list(values))
    _figure(ax).set_size_inches(WIDTH, 0.8 + 0.38 * len(losses))
    for i, (loss, style) in enumerate(zip(losses, styles(losses), strict=True)):
        found = np.array([v for v in values[loss] if v == v])
        runs: dict[str, Any] = {"color": style.color, "markerfacecolor": "none", "linestyle": "none", "alpha": 0.8}
        ax.plot(found, np.full(len(found), i - 0.17), marker=style.marker, **runs)
        if len(found):
            deviation = found.std(ddof=1) if len(found) > 1 else 0
            ax.errorbar(found.mean(), i + 0.17, xerr=deviation, fmt=style.marker, color=style.color, capsize=3)
    ax.set(yticks=np.arange(len(losses)), yticklabels=losses, xlabel=label, ylim=(len(losses) - 0.5, -0.5))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


@figure()
def curves(
    ax: Axes,
    values: Sequence[tuple[ArrayLike, ArrayLike]],
    names: Sequence[str],
    losses: Sequence[str | None],
    labels: tuple[str, str] = ("step", ""),
) -> None:
    """Something over training, a line for each run.

    Args:
        values: (x, y) of each run, arrays of one length.
        names: of the runs; an empty one is not in the legend.
        losses: as in `styles`.
        labels: of the axes.
    """
    for (x, y), name, style in zip(values, names, styles(losses), strict=True):
        line: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
        ax.plot(np.asarray(x), np.asarray(y), label=name or None, **line)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    _legend_above(ax, sum(map(bool, names)))


# ---- one model ----


@figure()
def outcome_histogram(
    ax: Axes, values: ArrayLike, right: ArrayLike, label: str, title: str = "", limits: tuple[float, float] | None = None
) -> None:
    """How something is distributed over the rows that are predicted right, and over those predicted wrong.

    Both are shares of their own rows, so that few wrong ones show as well as many right ones.

    Args:
        values: (N,).
        right: (N,) booleans.
        label: what the values are.
        title: the model's name.
        limits: of the axis, the same for models side by side. Default: those of the values.
    """
    v, is_right = np.asarray(values, dtype=np.float64), np.asarray(right, dtype=bool)
    low, high = limits or (float(v.min()), float(v.max()))
    edges = np.linspace(low, high if high > low else low + 1, 31)
    for style, name, chosen in ((RIGHT, "right", v[is_right]), (WRONG, "wrong", v[~is_right])):
        if not len(chosen):
            ax.plot([], [], color=style.color, label=f"{name}: none")
            continue
        shares = np.histogram(np.clip(chosen, *edges[[0, -1]]), edges)[0] / len(chosen)
        look: dict[str, Any] = {
            "edgecolor": style.color,
            "linestyle": style.linestyle,
            "hatch": style.hatch,
            "linewidth": 1.2,
        }
        face = "none" if style.hatch else style.color + "40"
        ax.stairs(shares, edges, fill=True, facecolor=face, label=f"{name} ({len(chosen):,})", **look)
        ax.axvline(chosen.mean(), color=style.color, linestyle=style.linestyle, linewidth=1)
    ax.set(xlabel=label, ylabel="share of these rows", title=title, xlim=edges[[0, -1]], ylim=(0, None))
    ax.legend(loc="best")


@figure(height=3.6)
def class_plane(
    ax: Axes,
    points: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    templates: ArrayLike | None = None,
    title: str = "",
) -> None:
    """Features of three classes, projected on the plane through the classes' templates (Müller et al. 2019, Fig. 1).

    Args:
        points: (N, 2), from `maxsup_hf.analysis.project`.
        labels: (N,) integers in [0, 3).
        classes: three names.
        templates: (3, 2), the classifier's rows in the same coordinates, marked with a white edge.
        title: the model's name.
    """
    xy, y = np.asarray(points, dtype=np.float64), np.asarray(labels)
    for k, (name, style) in enumerate(zip(classes, CLASS_STYLES, strict=True)):
        look: dict[str, Any] = {"s": 12, "alpha": 0.8, "linewidths": 0.7, "edgecolors": style.color, "rasterized": True}
        face = style.color if k == 0 else "none"
        ax.scatter(*xy[y == k].T, marker=style.marker, facecolors=face, label=_short(name), **look)
    if templates is not None:
        for place, style in zip(np.asarray(templates), CLASS_STYLES, strict=True):
            ax.plot(*place, marker=style.marker, color=style.color, markersize=9, markeredgecolor="white", zorder=3)
    ax.set(title=title, xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    for spine in ax.spines.values():
        spine.set(visible=True, color="#bbbbbb")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, handletextpad=0.1, columnspacing=0.8)


def heat_panels(image: ArrayLike, heats: Sequence[ArrayLike | None], titles: Sequence[str]) -> Figure:
    """An image, and beside it one copy for each model under the map of what the model looked at.

    Args:
        image: (H, W, 3) in [0, 1].
        heats: (h, w) of each model, not negative, of any scale; `None` where there is none.
        titles: of the image, and of each model.
    """
    pixels = np.asarray(image, dtype=np.float64)
    with rc_context(LOOK):
        columns = min(len(titles), 3)
        rows = -(-len(titles) // columns)
        lines = 1 + max(title.count("\n") for title in titles)
        fig = Figure(figsize=(WIDTH, rows * (WIDTH / columns + 0.15 + 0.15 * lines)))
        axes = np.atleast_1d(fig.subplots(rows, columns)).ravel()
        for ax in axes:
            ax.set_axis_off()
        height, width = pixels.shape[:2]
        # A dim grey image under the heat, whose lightness grows with it: so it reads in print too.
        grey = np.repeat(pixels.mean(-1, keepdims=True), 3, axis=-1)
        for ax, heat, title in zip(axes, [None, *heats], titles, strict=False):
            ax.set_title(title, fontsize=7.5)
            ax.imshow(pixels if heat is None else grey, extent=(0, width, height, 0), interpolation="nearest")
            if heat is not None:
                h = np.asarray(heat, dtype=np.float64)
                h = h / h.max() if h.max() > 0 else h
                ax.imshow(h, cmap="cividis", alpha=0.6, vmin=0, vmax=1, extent=(0, width, height, 0),
                          interpolation="bilinear")  # fmt: skip
            ax.set(xlim=(0, width), ylim=(height, 0))
        return fig


# ---- shared ----


def _figure(ax: Axes) -> Figure:
    return cast(Figure, ax.figure)


def _legend_above(ax: Axes, count: int) -> None:
    if count:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(count, 2))


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _some(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(M, K) with a row of +inf at classes that are NaN everywhere, so that their mean is one too."""
    stacked = np.stack(arrays)
    stacked[:, np.isnan(stacked).all(0)] = np.inf
    return stacked
