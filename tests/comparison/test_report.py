"""The report in a browser: every figure drawn, nothing on the console, readable on a desk and on a phone."""

import html
import re
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from maxsup_hf.comparison import figures, report
from maxsup_hf.comparison.plan import Plan, share_strength
from maxsup_hf.comparison.results import collect
from tests.chromium import look, needs_chromium
from tests.comparison.folders import leave

LOSSES = share_strength(["cross_entropy", "label_smoothing", "online_label_smoothing", "maxsup"], 0.1, 0.2, None, {})


def compared(folder, **changes):
    plan = Plan("text-classification", LOSSES, (0, 1, 2), {"alpha": (0.05, 0.1)}, ("--max_steps", "3"), 0.5)
    for i, run in enumerate(plan.runs()):
        of = {"accuracy": 0.8 + i / 100, "nll": 1 / (i + 1), "loss": 1 / (i + 1), "ece": 0.1, "margin": 0.1 * i}
        leave(folder, run, {"eval": of, "test": of}, **changes)
    return collect(plan, folder, {}, "t")


@needs_chromium
def test_in_a_browser(tmp_path):
    found = compared(tmp_path)
    page = report.write(found, tmp_path)
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert {
        "reliability", "within_class", "grid", "shared-accuracy", "chosen-accuracy", "training-eval_loss", "training-wrong",
    } <= drawn  # fmt: skip
    for width in (1280, 390):
        seen = look(page, tmp_path / "look", width)
        assert seen.errors == []
        assert len(seen.images) == len(drawn) and all(alt and natural > 0 for alt, natural, _ in seen.images)
        assert seen.width <= width and seen.smallest >= 12 and seen.broken == []
        assert all(200 <= shown <= width for _, _, shown in seen.images)
        assert seen.picture.stat().st_size > 50_000


@needs_chromium
def test_the_browser_tells(tmp_path):
    """That the checks above can fail."""
    page = tmp_path / "page.html"
    page.write_text(
        "<!DOCTYPE html><html><head></head><body><img alt='none' src='data:image/png;base64,AAAA'>"
        "<p style='width:900px;font-size:7px'>wide</p><table><thead><th style='max-width:3em;overflow-wrap:anywhere'>"
        "smoothing smoothing</th></thead></table><script>console.error('ouch'); nothing();</script></body></html>"
    )
    seen = look(page, tmp_path / "look", 390)
    assert seen.images[0][:2] == ["none", 0] and seen.width > 390 and seen.smallest == 7
    assert seen.broken == ["smoothing", "smoothing"]
    assert any("ouch" in error for error in seen.errors) and any("nothing is not defined" in error for error in seen.errors)


def test_says_what_was_run(tmp_path):
    found = compared(tmp_path) | {"flags": ["--max_steps", "3", "--source_prefix", "be --fast: <b>"]}
    text = report.write(found, tmp_path).read_text()
    assert "--max_steps 3\n--source_prefix 'be --fast: <b>'</pre>" in html.unescape(text)
    assert text.count("<details>") == 1 + len(found["runs"]) == 22
    for part in ("flags of every run", "maxsup-hf train maxsup-alpha=0.05-seed2", "weights1", "--max_steps 3", "Made with",
                 "paired t-test", "validation data, never on the test data"):  # fmt: skip
        assert part in text.replace("&#34;", '"')
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "<b>" not in text


def test_the_same_again_from_the_file(tmp_path):
    found = compared(tmp_path)
    first = report.write(found, tmp_path).read_bytes()
    assert report.write(found, tmp_path).read_bytes() == first


def test_without_features_it_says_why(tmp_path):
    found = compared(tmp_path, measured=None, not_measured="it has no classifier", classes=[])
    text = report.write(found, tmp_path).read_text()
    assert "Not measured: it has no classifier." in text and not (tmp_path / "figures" / "reliability.svg").exists()


def test_nothing_finished(tmp_path):
    plan = Plan("text-classification", LOSSES, (0,))
    text = report.write(collect(plan, tmp_path, {"maxsup-seed0": "status 2: error: no"}, "t"), tmp_path).read_text()
    assert "0 of 4 runs finished" in text and "The run maxsup-seed0 failed: status 2: error: no." in text


def test_pooled_rows_make_the_curve_of_all_rows():
    edges = [0.0, 0.5, 1.0]
    curves = [
        {"edges": edges, "rows": [1, 2], "confidence": [0.4, 0.8], "accuracy": [1.0, 0.5]},
        {"edges": edges, "rows": [3, 0], "confidence": [0.2, None], "accuracy": [0.0, None]},
    ]
    pooled = report.pool(curves)
    assert pooled.rows.tolist() == [4, 2]
    assert pooled.confidence == pytest.approx([0.25, 0.8]) and pooled.accuracy == pytest.approx([0.25, 0.5])
    empty = report.pool([curves[1]])
    assert np.isnan(empty.accuracy[1]) and empty.rows.tolist() == [3, 0]


def test_bands_are_of_the_steps_that_all_runs_have():
    histories = [[{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}], [{"step": 1, "x": 3.0}, {"step": 2, "y": 2.0}]]
    band = report._logged_band(histories, "x")
    assert band.x.tolist() == [1] and band.mean.tolist() == [2.0] and band.sd == pytest.approx(2**0.5)
    assert np.isnan(report._logged_band(histories[:1], "x").sd).all()
    assert len(report._logged_band(histories, "z").x) == 0


def test_curves_are_means_in_bands():
    two, one = figures.band([1, 2], [[3, 4], [5, 8]]), figures.band([1, 2], [[5, 6]])
    figure = figures.curves({"maxsup": two, "cross_entropy": one}, ("step", "R²"), least=4)
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[5, 6], [4, 6]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cross-entropy", "MaxSup"]
    edges = axes.collections[1].get_paths()[0].vertices
    assert edges[:, 1].max() == pytest.approx(6 + 8**0.5) and edges[:, 1].min() == 4
    assert not axes.collections[0].get_paths()  # a single run has no deviation


def test_spread_shows_every_run_and_mean_and_deviation():
    (axes,) = figures.spread({"maxsup": [1.0, 3.0], "cross_entropy": [2.0, np.nan], "focal": [np.nan]}, "accuracy").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cross-entropy", "MaxSup", "focal"]
    bars = {bar.lines[0].get_ydata()[0]: bar for bar in axes.containers}
    (segment,) = bars[1 + 0.17].lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [2 - 2**0.5, 2 + 2**0.5])
    assert len(bars) == 1  # a single run has no mean and deviation of its own


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 1234.5])
def test_ticks_do_not_overlap(scale):
    values = {"maxsup": [1 * scale, 1.3 * scale], "label_smoothing": [1.1 * scale]}
    steps = figures.band([100_000, 1_200_000], [[0.1, 0.2]])
    for drawn in (figures.spread(values, "x"), figures.curves({"maxsup": steps}, ("step", "x"))):
        FigureCanvasAgg(drawn).draw()
        (axes,) = drawn.axes
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert len(boxes) >= 2 and all(one.x1 < other.x0 for one, other in pairwise(boxes))
