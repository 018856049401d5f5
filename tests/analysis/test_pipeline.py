"""Analyses of several models: what is written is what was measured, and models that cannot be compared are refused."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from transformers import default_data_collator

pytest.importorskip("matplotlib", reason="needs matplotlib (pip install -e '.[analysis]')")
pytest.importorskip("captum", reason="needs captum (pip install -e '.[analysis]')")

from maxsup_hf.analysis import seen, style
from maxsup_hf.analysis.maps import choose_rows
from maxsup_hf.analysis.measure import measure
from maxsup_hf.analysis.pipeline import analyze
from maxsup_hf.analysis.seen import Subject
from maxsup_hf.trainer.features import FeatureRows, extract
from tests import tiny
from tests.trainer.test_features import Scaled

CLASSES = ["a", "b", "c", "d", "e"]


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Drawing is most of the time, and most tests look at something else."""

    def save(figure, folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.svg").write_text("<svg/>")
        return folder / f"{name}.svg"

    if request.function is not test_what_is_written_is_what_was_measured:
        monkeypatch.setattr(style, "save", save)


def subject(name="model", kind="vit", loss=None, classes=CLASSES, data=None, model=None, **kwargs):
    model = model or tiny.CLASSIFIERS[kind]()
    model.config.id2label = dict(enumerate(classes))
    rows = tiny.rows(tiny.batch(kind, 40) if data is None else data)
    return Subject(name, model, rows, default_data_collator, loss=loss, **kwargs)


def written(folder):
    return json.loads((folder / "analysis.json").read_text(encoding="utf-8"))


def expected(model, data):
    parts = list(extract(model, [data]))
    return measure(lambda: iter(parts), model.classifier.weight.detach())


def test_what_is_written_is_what_was_measured(tmp_path):
    subjects = [subject("ours", loss="maxsup", about={"from": "here"}), subject("theirs", loss="cross_entropy")]
    found = analyze(subjects, CLASSES, tmp_path / "out", title="T", data=["forty rows"], notes=["mind"], batch_size=7)
    report = written(tmp_path / "out")
    assert [each["name"] for each in report["models"]] == ["theirs", "ours"], "in the order of their losses"
    for each, model in zip(report["models"], [subjects[1].model, subjects[0].model], strict=True):
        whole = expected(model, tiny.batch("vit", 40))
        assert each["metrics"] == pytest.approx(whole.metrics, rel=1e-5)
        assert each["geometry"]["d_within_per_class"] == pytest.approx(list(whole.geometry["d_within_per_class"]), rel=1e-4)
        assert each["geometry"]["nc3_self_duality"] == pytest.approx(whole.geometry["nc3_self_duality"], rel=1e-4)
        assert each["reliability"]["rows"] == whole.curve.rows.tolist() and sum(whole.curve.rows) == 40
        assert each["classifier"] == "classifier"
    assert (report["title"], report["data"], report["classes"], report["notes"]) == ("T", ["forty rows"], CLASSES, ["mind"])
    assert report["models"][1]["about"] == {"from": "here"}
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {
        "analysis.json",
        "per_class.csv",
        "report.html",
        *report["figures"],
        *(f[:-3] + "png" for f in report["figures"]),
    }
    assert len(report["figures"]) == 2 + 3 * 2 + 2 * len(found.triples) + 4 and len(found.triples) == 2
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(report["figures"])
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)]
    assert pictures == [(tmp_path / "out" / name).read_bytes() for name in report["figures"]]
    assert f"<td>{report['models'][0]['metrics']['nll']:.4g}</td>" in page.replace("<strong>", "").replace("</strong>", "")


def test_the_order_of_classes_does_not_matter(tmp_path):
    """A model whose classes are called in another order is the same model."""
    one = subject("one")
    order = torch.tensor([3, 0, 4, 1, 2])
    other = tiny.vit()
    other.load_state_dict(one.model.state_dict())
    with torch.no_grad():
        other.classifier.weight.copy_(one.model.classifier.weight[order])
        other.classifier.bias.copy_(one.model.classifier.bias[order])
    two = subject("two", model=other, classes=[CLASSES[i] for i in order])
    analyze([one, two], CLASSES, tmp_path, images=0)
    first, second = written(tmp_path)["models"]
    assert first["metrics"] == pytest.approx(second["metrics"], rel=1e-6)
    assert first["geometry"]["d_within_per_class"] == second["geometry"]["d_within_per_class"]
    assert first["geometry"]["nc3_self_duality"] == pytest.approx(second["geometry"]["nc3_self_duality"], rel=1e-9)


def test_labels_of_the_data_are_matched_by_name(tmp_path):
    model, data = tiny.vit(), tiny.batch("vit", 40)
    straight = analyze([subject(model=model, data=data)], CLASSES, tmp_path / "one", images=0).measured[0]
    turned = data | {"labels": (data["labels"] + 2) % 5}
    names = [CLASSES[(i - 2) % 5] for i in range(5)]
    again = analyze([subject(model=model, data=turned)], names, tmp_path / "two", images=0).measured[0]
    assert again.metrics == pytest.approx(straight.metrics)
    np.testing.assert_array_equal(again.labels, straight.labels)


def test_classes_without_a_row_are_left_out_and_told(tmp_path):
    data = tiny.batch("vit", 40)
    data["labels"] %= 3
    found = analyze([subject(data=data)], CLASSES[:3], tmp_path, images=0)
    (note,) = found.notes
    assert note.startswith("2 of the 5 classes of the models have no row in the data: d, e.")
    assert note in (tmp_path / "report.html").read_text() and written(tmp_path)["notes"] == [note]
    assert written(tmp_path)["models"][0]["geometry"]["d_within_per_class"][3:] == [None, None]
    assert set(sum(found.triples, ())) == {0, 1, 2}


def test_triples_that_are_asked_for(tmp_path):
    found = analyze([subject()], CLASSES, tmp_path, triples=[["e", "a", "c"]], images=0)
    assert found.triples == [(4, 0, 2)] and written(tmp_path)["triples"] == [["e", "a", "c"]]
    for bad, message in ((["a", "b"], "expected three class names each, got 2"), (["a", "b", "z"], "'z' against")):
        with pytest.raises(ValueError, match=message):
            analyze([subject()], CLASSES, tmp_path / "no", triples=[bad])


def test_classes_whose_templates_lie_on_a_line_are_noted(tmp_path):
    model = tiny.vit()
    with torch.no_grad():
        model.classifier.weight[1] = 2 * model.classifier.weight[0]
        model.classifier.weight[2] = 3 * model.classifier.weight[0]
    found = analyze([subject(model=model)], CLASSES, tmp_path, triples=[["a", "b", "c"]], images=0)
    (note,) = found.notes
    assert note.startswith("model: no projection for a, b, c: the templates of these three classes lie on one line")
    assert not any("plane" in name for name in written(tmp_path)["figures"])


def test_a_text_model_has_no_maps(tmp_path):
    analyze([subject(kind="bert")], CLASSES, tmp_path)
    assert not any("map" in name for name in written(tmp_path)["figures"])
    assert "Where the models looked" not in (tmp_path / "report.html").read_text()


def test_maps_of_models_that_see_other_pixels_are_figures_of_their_own(tmp_path):
    data = tiny.batch("vit", 40)
    small = data | {"pixel_values": data["pixel_values"][..., 2:, 2:].repeat(1, 1, 2, 2)[..., :8, :8]}
    analyze(
        [subject("one", data=data), subject("two", data=small), subject("three", data=data)], CLASSES, tmp_path, images=2
    )
    maps = [name for name in written(tmp_path)["figures"] if "map" in name]
    assert maps == [
        "figures/map-1-1-one.svg",
        "figures/map-1-2-two.svg",
        "figures/map-2-1-one.svg",
        "figures/map-2-2-two.svg",
    ]


def test_rows_to_show():
    def made(predicted, confidence):
        data = FeatureRows(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
        found = measure.__globals__["Measured"]
        fields = dict.fromkeys(found.__dataclass_fields__, data)
        labels = np.array([0, 0, 1, 1, 2, 2])
        return found(**fields | {"labels": labels, "predicted": np.array(predicted), "confidence": np.array(confidence)})

    one = made([0, 0, 1, 1, 2, 0], [0.5, 0.6, 0.9, 0.8, 0.7, 0.3])
    two = made([0, 2, 1, 1, 2, 0], [0.5, 0.8, 0.9, 0.8, 0.7, 0.3])
    assert choose_rows([one], 4) == [5, 2, 4, 1]  # wrong; then the surest right one of each class
    assert choose_rows([one, two], 4) == [1, 5, 2, 4]
    assert choose_rows([one, two], 2) == [1, 2] and choose_rows([one], 0) == []
    assert choose_rows([made([1, 1, 0, 1, 0, 0], [0.5, 0.6, 0.9, 0.8, 0.7, 0.3])], 4) == [2, 4, 1, 3]


def test_what_was_seen_is_not_looked_at_again(tmp_path, monkeypatch):
    model = tiny.vit()
    keep = {"cache_dir": tmp_path / "cache", "images": 0}
    first = analyze([subject(model=model, data_key="k")], CLASSES, tmp_path / "1", **keep)

    def never(*args):
        raise AssertionError("the model ran again")

    with monkeypatch.context() as patch:
        patch.setattr(seen, "extract", never)
        again = analyze([subject(model=model, data_key="k")], CLASSES, tmp_path / "2", **keep)
        with pytest.raises(AssertionError):
            analyze([subject(model=model, data_key="other data")], CLASSES, tmp_path / "3", **keep)
        with pytest.raises(AssertionError):
            analyze([subject(data_key="k")], CLASSES, tmp_path / "4", **keep)
    assert again.measured[0].metrics == first.measured[0].metrics
    analyze([subject(model=model)], CLASSES, tmp_path / "5", **keep)
    assert len(list((tmp_path / "cache").iterdir())) == 1, "without a key nothing is kept"


def with_nan():
    model = tiny.vit()
    with torch.no_grad():
        model.vit.layernorm.weight[0] = torch.nan
    return model


def refusals():
    data = tiny.batch("vit", 40)
    single, empty = data | {"labels": torch.ones_like(data["labels"])}, {key: value[:0] for key, value in data.items()}
    turned = data | {"labels": data["labels"].flip(0)}
    other = subject("other", classes=["a", "b", "c", "d", "z"])
    more = subject("more", model=tiny.vit(num_labels=6), classes=[*CLASSES, "f"])
    regression = subject()
    regression.model.config.problem_type = "regression"
    return {
        "no model": ([], CLASSES, "expected at least one model, got none"),
        "two of a name": ([subject(), subject()], CLASSES, "must be distinct, got model, model"),
        "another class in the data": ([subject()], [*CLASSES[:4], "z"], "not among the 5 of model 'model': 'z'"),
        "another class in a model": ([subject(), other], CLASSES, "not among the 5 of model 'other': 'e'"),
        "more classes in a model": ([subject(), more], CLASSES, "model 'more' has 6 classes, model 'model' 5"),
        "other rows": ([subject(), subject("b", data=turned)], CLASSES, "'b' saw different rows than model 'model'"),
        "a single class": ([subject(data=single)], CLASSES, "model 'model': all rows are of class 1"),
        "no rows": ([subject(data=empty)], CLASSES, "model 'model': there are no rows"),
        "NaN": ([subject(model=with_nan())], CLASSES, "model 'model': features are NaN or infinite, first in row 0"),
        "a regression": ([regression], CLASSES, "its head is for regression"),
        "names that do not fit": ([subject(classes=CLASSES[:4])], CLASSES[:4], "it has 5 outputs, but 4 class names"),
        "no names": ([subject(classes=[])], CLASSES, "does not name its classes"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_refused(name, tmp_path):
    subjects, classes, message = refusals()[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        analyze(subjects, classes, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "something was written"


def test_a_model_without_a_classifier_layer_is_refused(tmp_path):
    model = Scaled(tiny.vit().config)
    with pytest.raises(ValueError, match="model 'model': Scaled has no classifier layer"):
        analyze([subject(model=model)], CLASSES, tmp_path / "out")
