"""Images of any form are read, and each one that cannot be is named."""

import io
from argparse import Namespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from maxsup_hf import cli
from maxsup_hf.data.class_folders import load_class_folders
from maxsup_hf.data.files import load_file
from maxsup_hf.data.images import as_images, check_images, to_rgb
from maxsup_hf.data.loading import load_splits
from maxsup_hf.data.seeded_fetching import SeededFetching
from maxsup_hf.prediction.model import Model
from maxsup_hf.scripts.common import run
from maxsup_hf.scripts.common.image_processors import ImageArguments
from tests.scripts.conftest import image_folder, picture


def encoded(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["bytes", "struct", "paths", "images"])
def test_every_form_of_a_column(form, tmp_path):
    cells = [encoded(i) for i in range(3)]
    for i, cell in enumerate(cells):
        (tmp_path / f"{i}.png").write_bytes(cell)
    column = {
        "bytes": cells,
        "struct": [{"bytes": cell, "path": None} for cell in cells],
        "paths": [str(tmp_path / f"{i}.png") for i in range(3)],
        "images": [picture(i) for i in range(3)],
    }[form]
    rows = datasets.Dataset.from_dict({"image": column, "label": [0, 1, 0]})
    found = as_images(rows, "image", "image_column_name", "train")
    check_images(found, "image", "image_column_name", "train")
    assert all((np.asarray(found[i]["image"]) == np.asarray(picture(i))).all() for i in range(3))


def test_paths_relative_to_the_file_that_names_them(tmp_path):
    (tmp_path / "data" / "photos").mkdir(parents=True)
    (tmp_path / "data" / "train.csv").touch()
    picture(0).save(tmp_path / "data" / "photos" / "0.png")
    picture(1).save(tmp_path / "here.png")  # the folder that the test runs in
    rows = datasets.Dataset.from_dict({"image": ["photos/0.png", "here.png"], "label": [0, 1]})
    found = as_images(rows, "image", "image_column_name", "train", file=str(tmp_path / "data" / "train.csv"))
    assert found[0]["image"].size == found[1]["image"].size == (8, 8)


def test_paths_relative_to_each_of_several_files(tmp_path):
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        picture(i).save(tmp_path / name / f"{i}.png")
        (tmp_path / name / "rows.csv").write_text(f"image,label\n{i}.png,{name}\n")
    rows = load_file("train_file", "?/rows.csv")
    for file in ("?/rows.csv", "a/rows.csv, b/rows.csv"):
        found = as_images(rows, "image", "image_column_name", "train", file=file)
        assert [found[i]["image"].size for i in range(2)] == [(8, 8)] * 2


def test_saved_images_under_the_flag_of_a_folder(tmp_path):
    folder = image_folder(tmp_path / "photos")
    datasets.load_dataset("imagefolder", data_dir=folder, split="train").save_to_disk("saved")
    args = ImageArguments(train_dir="saved")
    assert load_splits(args, builtin=None)["train"].features["label"].names == ["cat", "dog"]


@pytest.mark.parametrize("kind", ["truncated", "text", "missing", "deep"])
def test_the_file_that_cannot_be_used_is_named(kind, tmp_path):
    path = tmp_path / "5.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "deep":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(path, "png")
    else:
        path.unlink()
    picture(0).save(tmp_path / "0.png")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "0.png")] * 5 + [str(path)]})
    with pytest.raises(ValueError, match=r"1 of 6 images of the train data cannot be used.*row 5 \(.*5\.jpg\)"):
        check_images(as_images(rows, "image", "image_column_name", "train"), "image", "image_column_name", "train")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    """A black square on a transparent ground, as icons are."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[4:12, 4:12] = 255
    if mode == "P":
        image = Image.fromarray(alpha // 255, "P")
        image.putpalette([0, 0, 0] * 256)
        image.info["transparency"] = 0
    else:
        image = Image.fromarray(np.stack([np.zeros_like(alpha)] * (len(mode) - 1) + [alpha], -1), mode)
    assert (np.asarray(to_rgb(image)) == 255 - alpha[..., None]).all()


def test_a_file_that_breaks_during_training_is_one_line_with_its_row(tmp_path, capsys):
    rows = load_class_folders("train_dir", image_folder(tmp_path / "photos", count=2))
    rows = SeededFetching(rows.with_transform(lambda batch: {"size": [image.size for image in batch["image"]]}), seed=0)
    assert len(rows.__getitems__([3, 0])) == 2
    broken = tmp_path / "photos" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(SystemExit) as end:
        run._act(None, lambda job: rows.__getitems__([0, 3, 1]))
    said = capsys.readouterr().err
    assert end.value.code == 1 and said.count("\n") == 1
    assert said.startswith(f"error: row 3 of the training data ({broken}) cannot be read: ")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--validation_dir", "broken"], "error: row 3 of the evaluation data ({broken}) cannot be read: "),
        (["--test_dir", "broken"], "error: row 3 of the evaluation data ({broken}) cannot be read: "),
        (
            ["--test_dir", "broken", "--dataloader_num_workers", "1"],
            "error: row 3 of the evaluation data ({broken}) cannot be read: ",
        ),
        (
            ["--test_dir", "broken", "--do_predict", "true", "--do_eval", "false"],
            "error: do_predict: image_column_name: 1 of 4 images of the test data cannot be used: row 3 ({broken}): ",
        ),
    ],
)
def test_a_file_that_is_broken_in_an_evaluation_or_prediction_is_one_line_with_its_row(flags, line, tmp_path, capsys):
    for name in ("photos", "broken"):
        image_folder(tmp_path / name, count=2)
    broken = tmp_path / "broken" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    flags = [str(tmp_path / word) if word == "broken" else word for word in flags]
    short = ["--max_steps", "1", "--save_strategy", "no", "--eval_strategy", "no", "--skip_image_check", "true"]
    data = ["--train_dir", str(tmp_path / "photos"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "image-classification", *data, *flags, *short])
    said = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith(line.format(broken=broken))


def test_a_file_that_breaks_while_predicting_is_named(tmp_path):
    """After the check of `maxsup-hf predict`."""
    rows = load_class_folders("test_dir", image_folder(tmp_path / "photos", count=2))
    broken = tmp_path / "photos" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    model = Model(torch.zeros(1), None, 0, Namespace(batch_size=4, dataloader_num_workers=0))
    with pytest.raises(ValueError, match=r"^row 3 of the test data \(.*dog/1\.png\) cannot be read: "):
        list(model.batches(rows, list))
