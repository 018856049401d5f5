"""`maxsup-hf analyze` as users type it, and its report as a browser shows it."""

import html
import json
import re

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel, ViTImageProcessorPil

pytest.importorskip("matplotlib", reason="needs matplotlib (pip install -e '.[analysis]')")
pytest.importorskip("captum", reason="needs captum (pip install -e '.[analysis]')")

from maxsup_hf.analysis import cli
from maxsup_hf.analysis.data import IMAGE, TEXT, load_data
from maxsup_hf.data.columns import read_column
from maxsup_hf.hub.figures import CAPTIONS
from maxsup_hf.scripts import image_classification
from maxsup_hf.scripts.common.tokenizers import train_tokenizer
from tests import tiny
from tests.scripts.conftest import image_folder, write
from tests.test_cli import BIN, command
from tests.test_space import chromium, needs_chromium

DIGITS = [str(i) for i in range(10)]
TEXTS = [f"{word} {thing}" for word in ("good", "bad") for thing in ("day", "night", "rain", "sun", "tea", "walk", "song")]
MOODS = ["good"] * 7 + ["bad"] * 7


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def named(config, names):
    config.num_labels, config.id2label = len(names), dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    return config


def save(model, processor, folder, loss=None):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if loss:
        (folder / "run.json").write_text(json.dumps({"loss": {"name": loss, "kwargs": {"alpha": 0.1}}}))
    return str(folder)


def image_model(folder, names=DIGITS, loss=None, seed=0):
    torch.manual_seed(seed)
    model = tiny.resnet(num_labels=len(names))
    named(model.config, names)
    return save(model, ViTImageProcessorPil(size={"height": 8, "width": 8}), folder, loss)


def text_model(folder, names=("bad", "good"), model_class=BertForSequenceClassification):
    tokenizer = train_tokenizer(TEXTS, 300)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return save(model_class(named(BertConfig(vocab_size=300, **small), list(names))), tokenizer, folder)


def run(*words):
    cli.main([*map(str, words), "--cache_dir", "cache"])
    return json.loads(open("outputs/analysis/analysis.json", encoding="utf-8").read())


def flags(*words):
    return cli.parser().parse_args(["model", *words])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of two models on the built-in digits, by the installed command."""
    folder = tmp_path_factory.mktemp("report")
    for i, (name, loss) in enumerate((("with_maxsup", "maxsup"), ("smoothed", "label_smoothing"))):
        image_model(folder / name, loss=loss, seed=i)
    result = command(
        BIN / "maxsup-hf", "analyze", "with_maxsup", "smoothed", "--max_samples", "100", "--cache_dir", "cache", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "report: outputs/analysis/report.html\n"
    return folder / "outputs" / "analysis"


def test_installed_command(report):
    found = json.loads((report / "analysis.json").read_text(encoding="utf-8"))
    assert [(model["name"], model["loss"]) for model in found["models"]] == [
        ("smoothed", "label_smoothing"), ("with_maxsup", "maxsup"),
    ]  # fmt: skip
    assert found["models"][0]["about"]["parameters of the loss"] == "alpha=0.1" and found["classes"] == DIGITS
    assert found["data"] == ["The built-in data set of image-classification, split validation: 100 of 270 rows, 10 classes."]
    assert found["notes"] == [] and len(found["figures"]) == 2 + 6 + 4 + 4
    kinds = {re.sub(r"-\d+.*", "", path.removeprefix("figures/").removesuffix(".svg")) for path in found["figures"]}
    assert kinds == set(CAPTIONS)  # a card explains each of them
    assert len(list((report.parents[1] / "cache").iterdir())) == 2
    page = (report / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    first = re.search(r"<p[^>]*>(.*?)</p>", page)[1]
    shares = [model["wrong_rows"]["share"] for model in found["models"]]
    assert shares == pytest.approx([1 - model["metrics"]["accuracy"] for model in found["models"]])
    for name, share in zip(("smoothed", "with_maxsup"), shares, strict=True):
        assert f"{name} {100 * share:.1f} % (" in first and "of the 100 rows of the validation split" in first
    assert "McNemar&#39;s exact test" in page and [each["metric"] for each in found["differences"]] == [
        "accuracy", "nll", "brier", "ece",
    ]  # fmt: skip
    with open(report / "per_class.csv", encoding="utf-8") as file:
        rows = [line.split(",") for line in file.read().split()]
    assert rows[0] == ["model", "name", "support", "precision", "recall", "f1"] and len(rows) == 21
    assert sum(int(row[2]) for row in rows[1:]) == 200
    shown = re.sub(r"<[^>]+>", " ", page)
    assert not re.search(r"label_smoothing|\b(Ece|Nll|d_within)\b", shown)


PROBE = """<script>addEventListener('load', () => {
  const images = [...document.images].map((image) => {
    const canvas = document.createElement('canvas'), size = 100;
    canvas.width = canvas.height = size;
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0, size, size);
    const pixels = context.getImageData(0, 0, size, size).data;
    let ink = 0;
    for (let i = 0; i < pixels.length; i += 4) ink += pixels[i + 3] > 0 && pixels[i] + pixels[i + 1] + pixels[i + 2] < 600;
    const box = image.getBoundingClientRect();
    return {alt: image.alt, ink, natural: image.naturalWidth, left: box.left, right: box.right, top: box.top};
  });
  const all = (tags) => [...document.querySelectorAll(tags)].filter((e) => e.textContent.trim());
  parent.postMessage({
    images, scroll: document.documentElement.scrollWidth,
    font: Math.min(...all('p, td, th, figcaption, h1, h2').map((e) => parseFloat(getComputedStyle(e).fontSize))),
    right: Math.max(...all('p, figcaption, h1, h2, table').map((e) => e.getBoundingClientRect().right)),
  }, '*');
});</script>"""


def look(page, width, folder, probe=PROBE):
    """What a browser makes of a page in a frame of some width (windows are never narrower than about 500 pixels)."""
    folder.mkdir()
    (folder / "page.html").write_text(page.replace("<head>", "<head>" + probe, 1), encoding="utf-8")
    listen = "addEventListener('message', (e) => document.body.dataset.found = JSON.stringify(e.data))"
    frame = f'<iframe src="page.html" style="border:0;width:{width}px;height:6000px"></iframe>'
    (folder / "frame.html").write_text(f'<body style="margin:0"><script>{listen}</script>{frame}')
    shown = chromium(
        "--dump-dom", "--enable-logging=stderr", "--virtual-time-budget=10000", f"--window-size={max(width, 600)},6000",
        "--hide-scrollbars", (folder / "frame.html").as_uri(), profile=folder / "profile",
    )  # fmt: skip
    found = re.search(r'data-found="([^"]*)"', shown.stdout)
    assert found, shown.stderr[-2000:]
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_in_chromium(width, report, tmp_path):
    page = (report / "report.html").read_text(encoding="utf-8")
    found, console = look(page, width, tmp_path / "seen")
    assert not console
    assert len(found["images"]) == 16 and all(image["alt"] for image in found["images"])
    for image in found["images"]:
        assert image["natural"] > 0 and image["ink"] > 50, f"{image['alt']}: not drawn"
        scale = (image["right"] - image["left"]) / image["natural"]
        assert scale > 0.8, f"{image['alt']}: its text of 9 points would be less than 7"
        assert image["left"] >= 0 and image["right"] <= width
    assert found["font"] >= 12 and found["scroll"] <= width and found["right"] <= width
    beside = len({image["top"] for image in found["images"]}) < len(found["images"])
    assert beside == (width > 600), "figures stand side by side where there is room"
    picture = tmp_path / "report.png"
    shot = chromium(
        f"--screenshot={picture}", f"--window-size={max(width, 600)},6000", "--allow-file-access-from-files",
        (tmp_path / "seen" / "frame.html").as_uri(), profile=tmp_path / "profile",
    )  # fmt: skip
    assert picture.stat().st_size > 100_000, shot.stderr[-2000:]


@needs_chromium
def test_the_browser_would_have_said_so(tmp_path):
    """What the test above looks for is found where it is wrong."""
    bad = '<html><head></head><body><img alt="x" src="data:image/svg+xml;base64,AAAA"><p style="width:900px">wide</p>'
    probe = PROBE.replace("context.drawImage(image, 0, 0, size, size);", "")
    found, console = look(bad + "<script>nope()</script>", 390, tmp_path / "seen", probe)
    assert "nope is not defined" in " ".join(console)
    (image,) = found["images"]
    assert (image["natural"], image["ink"]) == (0, 0) and found["scroll"] > 390 and found["right"] > 390


def test_texts_of_a_file(tmp_path):
    """The metrics are those of the model by hand; classes are matched by name, although the model has them the other way."""
    model = text_model(tmp_path / "model", names=("good", "bad"))
    write("data.csv", {"text": TEXTS, "mood": MOODS})
    found = run(model, "--dataset", "data.csv", "--label_column_name", "mood")
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), BertForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        logits = loaded(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    labels = torch.tensor([["good", "bad"].index(mood) for mood in MOODS])
    (metrics,) = [each["metrics"] for each in found["models"]]
    assert metrics["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert found["classes"] == ["good", "bad"] and found["triples"] == []
    assert "%) of the 14 rows." in (tmp_path / "outputs" / "analysis" / "report.html").read_text(encoding="utf-8")
    assert found["data"] == ["data.csv: 14 rows, 2 classes."] and "These are rows of one file." in found["notes"][0]


def test_held_out_rows_are_those_that_training_held_out(tmp_path):
    """By default of the share that the models' training held out; of another share, some rows may have been trained on."""
    models = [text_model(tmp_path / name) for name in ("half", "default")]
    (tmp_path / "half" / "config.yaml").write_text("seed: 0\ntrain_val_split: 0.5\n")
    write("data.csv", {"text": TEXTS, "mood": MOODS})
    words = ("--dataset", "data.csv", "--label_column_name", "mood", "--split", "validation")
    found = run(models[0], *words)
    assert found["data"] == ["data.csv, split validation: 7 rows, 2 classes."] and not found["notes"]
    (tmp_path / "default" / "config.yaml").write_text("seed: 0\n")
    run(*models, *words, "--output_dir", "both")
    (note,) = json.loads((tmp_path / "both" / "analysis.json").read_text())["notes"]
    assert "the 0.15 of the training data" in note and "half was trained with --train_val_split 0.5, so it may" in note


def test_a_folder_of_class_folders_and_labels_by_position(tmp_path):
    model = image_model(tmp_path / "model", names=["feline", "canine"])
    image_folder(tmp_path / "photos", count=4)
    words = (model, "--dataset", "photos", "--images", 0, "--no_cache", "--names", "mine")
    with pytest.raises(SystemExit):
        run(*words)
    found = run(*words, "--labels_by_position")
    assert "Classes are matched by position (--labels_by_position), not by name: 0: cat; 1: dog." in found["notes"]
    assert found["models"][0]["name"] == "mine" and found["classes"] == ["cat", "dog"]
    assert not (tmp_path / "cache").exists()


def test_rows_that_training_holds_out_are_those_that_are_looked_at():
    job = image_classification.prepare(["--output_dir", "run"])
    data, notes = load_data(IMAGE, flags())
    for column in ("image", "labels"):
        assert read_column(data.dataset, column).to_pylist() == read_column(job.trainer.eval_dataset, column).to_pylist()
    assert not notes and data.classes == DIGITS


def test_which_split(tmp_path):
    def part(count):
        return datasets.Dataset.from_dict({"text": (TEXTS * 9)[:count], "label": (MOODS * 9)[:count]})

    splits = datasets.DatasetDict(train=part(100), validation=part(30), test=part(20))
    splits.save_to_disk("three")
    datasets.DatasetDict(train=splits["train"], valid=splits["validation"]).save_to_disk("two")
    datasets.DatasetDict(train=splits["train"]).save_to_disk("one")
    hidden = splits["test"].remove_columns("label")
    datasets.DatasetDict(train=splits["train"], dev=splits["validation"], test=hidden).save_to_disk("hidden")
    datasets.DatasetDict(a=splits["train"], b=splits["validation"]).save_to_disk("odd")
    for name, split, rows in (
        ("three", None, 20), ("three", "validation", 30), ("three", "train", 100), ("two", None, 30), ("one", None, 100),
        ("one", "validation", 15), ("hidden", None, 30), ("odd", "b", 30),
    ):  # fmt: skip
        given = ("--split", split) if split else ()
        data, notes = load_data(TEXT, flags("--dataset", name, *given))
        assert len(data.dataset) == rows, (name, split)
        assert bool(notes) == (rows == 100)
    for name, split, message in (("odd", None, "no split 'test'; name one of these: a, b"), ("two", "x", "no split 'x'")):
        with pytest.raises(ValueError, match=message):
            load_data(TEXT, flags("--dataset", name, *(("--split", split) if split else ())))


@pytest.mark.parametrize("kind", ["paths", "bytes"])
def test_images_as_training_reads_them(kind, tmp_path):
    """By paths beside the file that names them, or encoded."""
    image_folder(tmp_path / "photos", count=2)
    files = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    images = files if kind == "paths" else [(tmp_path / "photos" / file).read_bytes() for file in files]
    name = write("photos/rows.parquet", {"image": images, "label": ["cat", "cat", "dog", "dog"]})
    data, _ = load_data(IMAGE, flags("--dataset", name))
    assert data.classes == ["cat", "dog"] and [image.size for image in data.dataset["image"]] == [(8, 8)] * 4


def test_fewer_rows_keep_the_shares_of_the_classes():
    data, _ = load_data(IMAGE, flags("--max_samples", "50"))
    counts = np.bincount(read_column(data.dataset, "labels").to_numpy())
    assert counts.sum() == 50 and set(counts) <= {4, 5, 6}


def bad_input(tmp_path):
    """Name -> words of the command, and what its one line says."""
    digits, moods = image_model(tmp_path / "digits"), text_model(tmp_path / "moods")
    body = text_model(tmp_path / "body", model_class=BertModel)
    headless = text_model(tmp_path / "headless", model_class=BertModel)
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    (tmp_path / "headless" / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertForSequenceClassification"]})
    )
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    nan = text_model(tmp_path / "nan")
    model = BertForSequenceClassification.from_pretrained(nan)
    torch.nn.init.constant_(model.bert.pooler.dense.weight, torch.nan)
    model.save_pretrained(nan)
    write("moods.csv", {"text": TEXTS, "label": MOODS})
    write("colours.csv", {"text": TEXTS, "label": ["red"] * 7 + ["blue"] * 7})
    write("single.csv", {"text": TEXTS, "label": ["good"] * 14})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    image_folder(tmp_path / "two_classes", count=2)
    return {
        "no such model": (["nowhere"], "MODEL: 'nowhere' could not be loaded"),
        "a folder of something else": (["two_classes"], "MODEL: 'two_classes' contains no model (no config.json)"),
        "no data for a model of one's own": ([moods], "against 'bad', 'good'. Name the model's data with --dataset"),
        "no classifier": ([body], "has no classifier layer: it was saved as BertModel"),
        "a head without weights": ([headless], "lacks weights, which would be random: classifier.bias, classifier.weight"),
        "an adapter": (["adapter"], "'adapter' contains an adapter; merge it"),
        "two tasks": ([digits, moods], "must have the same task, got image-classification and text-classification"),
        "other classes": (
            [moods, "--dataset", "colours.csv"],
            "2 of the 2 classes of the data are not among the 2 of model 'moods': 'blue', 'red' against 'bad', 'good'",
        ),
        "a single class": ([moods, "--dataset", "single.csv"], "all 14 rows of the train data are of class 'good'"),
        "NaN": ([nan, "--dataset", "moods.csv"], "model 'nan': features are NaN or infinite, first in row 0"),
        "no such data": ([moods, "--dataset", "none.csv"], "dataset: there is no file 'none.csv'"),
        "no such data set": ([moods, "--dataset", "nobody/none"], "dataset: 'nobody/none' could not be loaded"),
        "no such split": ([moods, "--dataset", "moods.csv", "--split", "dev"], "'moods.csv' has no split 'dev'"),
        "texts for images": ([digits, "--dataset", "moods.csv"], "image_column_name: the column could not be found"),
        "a used folder": ([moods, "--output_dir", "full"], "output_dir: 'full' is not empty"),
        "too many names": ([moods, "--names", "a,b"], "names: expected 1 names, one for each model, got 2"),
        "no rows": ([moods, "--max_samples", "0"], "max_samples must be at least 2, got 0"),
        "positions that do not fit": (
            [digits, "--dataset", "two_classes", "--labels_by_position"], "it has 10 outputs, but 2 class names",
        ),
        "an unknown triple": (
            [moods, "--dataset", "moods.csv", "--triple", "good", "bad", "so-so"], "of triples are not among the 2",
        ),
    }  # fmt: skip


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    for name, (words, message) in bad_input(tmp_path).items():
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            run(*words)
        error = capsys.readouterr().err.splitlines()[-1]
        assert exit.value.code == 2 and error.startswith("error: ") and message in error, (name, error)
        assert not (tmp_path / "outputs").exists(), name


def test_help_shows_the_flags(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["--help"])
    assert exit.value.code == 0
    assert "--dataset" in capsys.readouterr().out
