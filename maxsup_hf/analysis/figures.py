"""Figures of trained classifiers: one function each, from plain arrays to a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.analysis.style import (
    CLASS_STYLES,
    GREY,
    HEIGHT,
    LOOK,
    RIGHT,
    WIDTH,
    WRONG,
    Axes,
    Figure,
    figure,
    figure_of,
    legend_above,
    rc_context,
    shortened,
    styles,
)
from maxsup_hf.metrics import ReliabilityCurve

# ---- several models ----


@figure(height=3.9)
def reliability(ax: Axes, curves: Sequence[ReliabilityCurve], names: Sequence[str], losses: Sequence[str | None]) -> None:
    """Reliability diagram: accuracy against confidence, and below it the share of the rows with that confidence.

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
    legend_above(ax, len(names))


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

    Up to `most` classes are shown by name; more classes as curves, each model's classes sorted by its own values.

    Args:
        values: (K,) of each model; NaN for a class without a sample.
        names: of the models.
        losses: as in `styles`.
        classes: K names.
    """
    arrays = [np.asarray(v, dtype=np.float64) for v in values]
    drawn = list(zip(arrays, names, styles(losses), strict=True))
    if len(classes) <= most:
        order = _by_mean(arrays)
        figure_of(ax).set_size_inches(WIDTH, max(HEIGHT, 1 + 0.2 * len(classes)))
        for v, name, style in drawn:
            ax.plot(v[order], np.arange(len(order)), color=style.color, marker=style.marker, linestyle="none", label=name)
        ax.set(yticks=np.arange(len(order)), yticklabels=[shortened(classes[k]) for k in order])
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set(xlabel="within-class variation", xlim=(0, None))
    else:
        for v, name, style in drawn:
            rising = np.sort(v[~np.isnan(v)])
            line: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
            ax.plot(np.arange(len(rising)), rising, label=name, markevery=max(1, len(rising) // 8), **line)
        ax.set(xlabel="classes, each model's sorted by variation", ylabel="within-class variation", ylim=(0, None))
    legend_above(ax, len(names))


# ---- one model ----


@figure()
def outcome_histogram(
    ax: Axes, values: ArrayLike, right: ArrayLike, label: str, title: str = "", limits: tuple[float, float] | None = None
) -> None:
    """How a quantity is distributed over the rows predicted right, and over those predicted wrong.

    Each histogram shows shares of its own rows, so that few wrong rows are as visible as many right ones.

    Args:
        values: (N,).
        right: (N,) booleans.
        label: what the values are.
        title: the model's name.
        limits: of the axis, the same for all models. Default: those of the values.
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
        ax.scatter(*xy[y == k].T, marker=style.marker, facecolors=face, label=shortened(name), **look)
    if templates is not None:
        for place, style in zip(np.asarray(templates), CLASS_STYLES, strict=True):
            ax.plot(*place, marker=style.marker, color=style.color, markersize=9, markeredgecolor="white", zorder=3)
    ax.set(title=title, xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    for spine in ax.spines.values():
        spine.set(visible=True, color="#bbbbbb")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, handletextpad=0.1, columnspacing=0.8)


def heat_panels(image: ArrayLike, heats: Sequence[ArrayLike | None], titles: Sequence[str]) -> Figure:
    """An image, and a copy for each model with the model's attribution map laid over it.

    Args:
        image: (H, W, 3) in [0, 1].
        heats: (h, w) of each model, at least 0, of any scale; `None` for a model without a map.
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
        # A grey image under a map that is lighter where it is greater, so that it reads in greyscale print too.
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


def _by_mean(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.intp]:
    """Classes in rising order of their mean over models, those that are NaN for all models last."""
    stacked = np.stack(arrays)
    stacked[:, np.isnan(stacked).all(0)] = np.inf  # nanmean would warn of an empty column
    return np.argsort(np.nanmean(stacked, axis=0), kind="stable")
