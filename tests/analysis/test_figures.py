"""Figures show the values they are given, and losses look the same in all of them."""

import io
import re
from itertools import combinations

import numpy as np
import pytest

from maxsup_hf.losses import list_losses
from maxsup_hf.metrics import ReliabilityCurve

pytest.importorskip("matplotlib", reason="needs matplotlib (pip install -e '.[analysis]')")

from matplotlib.colors import to_rgb

from maxsup_hf.analysis import figures, model_figures, style

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
NAMES, LOSSES = ["a", "b"], ["maxsup", "label_smoothing"]


def curve(rows=(0, 20, 0, 60, 9)):
    edges = np.linspace(0, 1, 6)
    confidence, accuracy = [np.nan, 0.3, np.nan, 0.7, 0.9], [np.nan, 0.5, np.nan, 1, 2 / 3]
    return ReliabilityCurve(edges, np.array(rows), np.array(confidence), np.array(accuracy))


def lines(axes, label=None):
    return [line for line in axes.get_lines() if label in (None, line.get_label())]


def test_every_loss_has_its_own_look_and_place():
    assert set(style.LOSS_STYLES) == set(list_losses())
    looks = list(style.LOSS_STYLES.values())
    assert {look.color for look in looks} <= OKABE_ITO
    # in print, without colours, by line and marker
    assert len({look.marker for look in looks}) == len(looks)
    assert len({(look.color, look.linestyle) for look in looks}) == len(looks)


def test_what_is_most_compared_differs_in_lightness_too():
    lightness = {
        name: np.dot(to_rgb(style.LOSS_STYLES[name].color), (0.2126, 0.7152, 0.0722))
        for name in ("cross_entropy", "label_smoothing", "maxsup")
    }
    assert all(abs(lightness[a] - lightness[b]) > 0.15 for a, b in combinations(lightness, 2))


def test_order():
    assert style.loss_order(["zzz", "maxsup", "aaa", "cross_entropy", "maxsup", "focal"]) == [
        "cross_entropy", "maxsup", "focal", "aaa", "zzz",
    ]  # fmt: skip


def test_models_with_the_same_loss_share_its_colour_and_nothing_else():
    found = style.styles(["maxsup", None, "maxsup", "mine", "mine", None, "label_smoothing"])
    assert found[0] == style.LOSS_STYLES["maxsup"] and found[6] == style.LOSS_STYLES["label_smoothing"]
    assert found[0].color == found[2].color and found[3].color == found[4].color
    assert len({(look.color, str(look.linestyle)) for look in found}) == 7
    assert len({(look.marker, str(look.linestyle)) for look in found}) == 7, "cannot be told apart in greyscale"
    assert style.styles(["maxsup"] * 2 + ["focal"]) == style.styles(["maxsup"] * 2 + ["focal", None])[:3]
    assert len(style.styles([None] * 40)) == 40


def test_reliability_leaves_empty_bins_out_and_fades_small_ones():
    axes, below = figures.reliability([curve()], ["a"], ["maxsup"]).axes
    (line,) = lines(axes, "a")
    assert line.get_xdata().tolist() == [0.3, 0.7] and line.get_ydata().tolist() == [0.5, 1.0]
    assert line.get_color() == style.LOSS_STYLES["maxsup"].color
    (faded,) = [other for other in lines(axes) if other.get_alpha()]
    assert faded.get_xdata().tolist() == [0.9] and faded.get_alpha() < 0.5
    bars = [segment for drawn in axes.collections for segment in drawn.get_segments()]
    wilson = [(0.2993, 0.7007), (0.9398, 1.0), (0.3542, 0.8794)]  # of 10 of 20, 60 of 60 and 6 of 9
    assert [tuple(segment[:, 1]) for segment in bars] == [pytest.approx(each, abs=1e-3) for each in wilson]
    (stairs,) = below.patches
    assert stairs.get_data().values.tolist() == [0, 20, 0, 60, 9]


def test_within_class_names_each_class_and_of_many_the_ends():
    values = [[0.3, np.nan, 0.1], [0.5, np.nan, 0.2]]
    (axes,) = figures.within_class(values, NAMES, LOSSES, ["x", "absent", "y"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["y", "x", "absent"]
    assert lines(axes, "b")[0].get_xdata()[:2].tolist() == [0.2, 0.5]
    many = np.linspace(1, 0, 40)
    many[3] = np.nan
    (axes,) = figures.within_class([many, many / 2], NAMES, LOSSES, [str(i) for i in range(40)], most=6).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["39", "38", "37", "… 34 more …", "2", "1", "0"]
    np.testing.assert_array_equal(lines(axes, "b")[0].get_xdata(), [*many[[39, 38, 37]] / 2, np.nan, *many[[2, 1, 0]] / 2])


def test_histograms_are_shares_of_their_own_rows():
    values, right = np.array([0.1, 0.2, 0.9, 0.9, 5.0]), np.array([False, False, True, True, True])
    shared = model_figures.histogram_axes([values, np.full(5, 0.5)], [right, right], limits=(0, 1))
    assert shared.highest == 1 and shared.edges.tolist() == pytest.approx(np.arange(11) / 10)
    (axes,) = model_figures.outcome_histogram(values, right, "confidence", shared=shared).axes
    assert axes.get_ylim() == (0, 1.05) and axes.get_xlim() == (-0.02, 1.02)
    heights = [patch.get_data().values for patch in axes.patches]
    assert [h.sum() for h in heights] == pytest.approx([1, 1])
    assert heights[0][-1] == pytest.approx(1) and np.flatnonzero(heights[1]).tolist() == [1, 2]  # 5 is put into the last
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["right (3)", "wrong (2)"]
    (axes,) = model_figures.outcome_histogram(values, np.ones(5), "x").axes
    assert "wrong: none" in [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(("wrong", "bins"), [(5, 10), (400, 20), (10**5, 30)])
def test_a_few_rows_are_not_spread_over_many_bins(wrong, bins):
    right = np.arange(10**5 + wrong) >= wrong
    assert len(model_figures.histogram_axes([right * 0.5], [right]).edges) == bins + 1


def test_confusions_are_counts():
    (axes,) = model_figures.confusion([[8, 2], [0, 5]], ["cat", "dog"], "m").axes
    np.testing.assert_allclose(axes.images[0].get_array() ** 2, [[0.8, 0.2], [0, 1]])
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "8", (1, 0): "2", (1, 1): "5"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_planes_show_each_class_with_its_own_marker():
    points, labels = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 2, 1, 0])
    (axes,) = model_figures.class_plane(points, labels, ["x", "y", "z"], templates=points[:3], title="m").axes
    for k, drawn in enumerate(axes.collections):
        np.testing.assert_array_equal(drawn.get_offsets(), points[labels == k])
    assert len({tuple(map(tuple, drawn.get_paths()[0].vertices)) for drawn in axes.collections}) == 3
    assert axes.get_aspect() == 1.0 and len(axes.get_lines()) == 3


def test_panels_for_an_image_and_each_model():
    image = np.random.default_rng(0).random((6, 8, 3))
    heat = np.array([[0.0, 2.0], [0.0, 0.0]])
    figure = model_figures.heat_panels(image, [heat, None, np.zeros((3, 3))], ["image", "a\nb", "c", "d"])
    panels = figure.axes
    assert [axes.get_title() for axes in panels][:4] == ["image", "a\nb", "c", "d"]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), image)
    np.testing.assert_array_equal(panels[1].images[1].get_array(), heat / 2)
    assert len(panels[2].images) == 1
    assert all(tuple(shown.get_extent()) == (0, 8, 6, 0) for axes in panels for shown in axes.images)
    placed = model_figures.heat_panels(image, [heat], ["image", "a"], [(1, 9, 5, -1)]).axes[1]
    assert tuple(placed.images[1].get_extent()) == (1, 9, 5, -1)
    assert placed.get_xlim() == (0, 8) and placed.get_ylim() == (6, 0)


def test_files_are_both_kinds_and_the_same_each_time(tmp_path):
    texts = []
    for folder in ("one", "two"):
        figure = figures.reliability([curve(), curve()], NAMES, LOSSES)
        path = style.save(figure, tmp_path / folder, "reliability")
        texts.append(path.read_text())
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert texts[0] == texts[1] and path.suffix == ".svg"
    assert re.search(r'width="3\d\d(\.\d+)?pt"', texts[0]), "4.2 inches of 72 points"


LONG = [f"a class with a long name {i}" for i in range(40)]
MODELS = ["organisation/a-model-with-a-name-that-is-longer-than-any-figure-is-wide", *"bcdef"]


GENERATOR = np.random.default_rng(0)
LARGE = GENERATOR.normal(size=500) * 1e5
WITHIN = [GENERATOR.random(40) * scale for scale in (1e-3, 1, 1, 1, 1, 1)]
HALVES = np.linspace(0, 1, 3)
EXTREME = ReliabilityCurve(HALVES, np.array([10**6, 3]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))
ONE_ROW = ReliabilityCurve(HALVES, np.array([1, 0]), np.array([0.001, np.nan]), np.array([0.0, np.nan]))
# what is hard to draw: long names, extremes, large values, empty bins
AWKWARD = {
    "reliability": lambda: figures.reliability([EXTREME] * 5 + [ONE_ROW], MODELS, [None] * 6),
    "within many": lambda: figures.within_class(WITHIN, MODELS, [None] * 6, LONG),
    "within two": lambda: figures.within_class([np.array([0.0, 1e-7])], ["m"], [None], LONG[:2]),
    "histogram": lambda: model_figures.outcome_histogram(LARGE, np.arange(500) > 3, "top logit − mean logit", MODELS[0]),
    "confusion 2": lambda: model_figures.confusion([[10**6, 5], [0, 1]], LONG[:2], MODELS[0]),
    "confusion 10": lambda: model_figures.confusion(np.full((10, 10), 9999), LONG[:10], MODELS[0]),
    "confusion 21": lambda: model_figures.confusion(np.full((21, 21), 123456), LONG[:21], MODELS[0]),
    "plane": lambda: model_figures.class_plane(
        LARGE[:30].reshape(15, 2), np.arange(15) % 3, LONG[:3], LARGE[:6].reshape(3, 2), MODELS[0]
    ),
    "panels": lambda: model_figures.heat_panels(
        np.zeros((8, 8, 3)), [np.ones((2, 2))] * 2, [LONG[0] * 2, *(f"{MODELS[0]}:\n{LONG[1]}, 99 %" for _ in range(2))]
    ),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_nothing_is_cut_and_no_ticks_overlap(name):
    figure = AWKWARD[name]()
    figure.savefig(io.BytesIO(), format="png", dpi=100)
    inside = figure.bbox.padded(2)
    titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    assert not any(a.overlaps(b) for a, b in combinations(titles, 2)), "titles overlap"
    assert all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in titles), "a title is cut"
    for axes in figure.axes:
        frame = axes.get_window_extent().padded(4)
        assert frame.width > 0.35 * figure.bbox.width, "names leave the axes no room"
        for line in axes.get_lines():
            if line.get_marker() not in ("None", "", None):
                points = axes.transData.transform(np.column_stack(line.get_data()).astype(float))
                assert all(frame.contains(*point) for point in points if np.isfinite(point).all()), "a mark is cut"
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            shown = axis.get_view_interval()
            ticks = [tick for tick in axis.get_major_ticks() if min(shown) <= tick.get_loc() <= max(shown)]
            ticks = [tick for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
            labels = [tick.label1.get_window_extent() for tick in ticks]
            assert not any(a.overlaps(b) for a, b in combinations(labels, 2)), "ticks overlap"
            if name.startswith("confusion"):
                cell = abs(np.diff(axes.transData.transform([(0, 0), (1, 1)]), axis=0)[0, 0])
                assert all(text.get_window_extent().width < cell for text in axes.texts), "numbers overlap"
            texts = [axis.label, *(tick.label1 for tick in ticks), *axes.texts]
            boxes = [text.get_window_extent() for text in texts if text.get_text()]
            assert all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in boxes), "text is cut"
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    for box in (legend.get_window_extent() for legend in legends):
        assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), "the legend is cut"


def test_titles_are_not_cut_off():
    figure = model_figures.heat_panels(np.zeros((8, 8, 3)), [np.ones((2, 2))] * 2, ["x", "one\ntwo", "three\nfour"])
    figure.savefig(io.BytesIO(), format="png")
    top = max(axes.title.get_window_extent().y1 for axes in figure.axes)
    assert top <= figure.bbox.y1
