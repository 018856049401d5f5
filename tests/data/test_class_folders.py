"""No class and no image of a folder disappears without a word."""

import os

import datasets
import pytest

from maxsup_hf.data.class_folders import load_class_folders
from maxsup_hf.data.loading import load_named
from tests.scripts.conftest import image_folder, picture


def counts(dataset):
    labels = dataset.features["label"].int2str(dataset["label"])
    return {name: labels.count(name) for name in dataset.features["label"].names}


@pytest.fixture
def photos(tmp_path):
    image_folder(tmp_path / "photos", ("cat", "dog"), 3)
    return tmp_path / "photos"


def test_rows_are_in_the_order_of_datasets(photos, tmp_path, monkeypatch):
    """So that a folder that `datasets` read before is held out the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    image_folder(photos, ("cat-b", "cat b", "Cat", "cat.c"), 11)
    found = [load_class_folders("train_dir", str(photos)), datasets.load_dataset(str(photos))["train"]]
    paths, others = (dataset.cast_column("image", datasets.Image(decode=False))["image"] for dataset in found)
    assert [image["path"] for image in paths] == [image["path"] for image in others]
    assert found[0]["label"] == found[1]["label"]


def test_links_and_names_that_begin_with_a_sign(photos, tmp_path):
    image_folder(tmp_path / "elsewhere", ("slug",), 2)
    os.symlink(tmp_path / "elsewhere" / "slug", photos / "slug")
    os.symlink(photos / "slug", photos / "slug" / "loop")
    image_folder(photos, (".hidden", "__boa"), 1)
    everything = {".hidden": 1, "__boa": 1, "cat": 3, "dog": 3, "slug": 2}
    assert counts(load_class_folders("train_dir", str(photos))) == everything
    assert counts(load_named("dataset_name", str(photos))["train"]) == everything


def test_a_folder_for_each_split(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, images in (("train", 2), ("test", 1)):
        image_folder(tmp_path / "splits" / split, ("__owl", "fox"), images)
    found = load_named("dataset_name", str(tmp_path / "splits"))
    assert {split: counts(rows) for split, rows in found.items()} == {
        "train": {"__owl": 2, "fox": 2}, "test": {"__owl": 1, "fox": 1},
    }  # fmt: skip
    # a file of metadata says what the images are: that is left to `datasets`
    (photos / "metadata.csv").write_text("file_name,caption\ncat/0.png,a cat\n")
    assert load_named("dataset_name", str(photos))["train"].column_names == ["image", "caption"]


def test_what_tools_leave_behind_is_no_class(photos, caplog):
    image_folder(photos, (".ipynb_checkpoints", "__MACOSX"), 1)
    (photos / "cat" / "._0.png").write_bytes(b"resource fork")
    (photos / "cat" / ".DS_Store").write_bytes(b"")
    assert counts(load_class_folders("train_dir", str(photos))) == {"cat": 3, "dog": 3} and not caplog.records


def test_an_image_without_extension_is_read_and_other_files_are_counted(photos, caplog):
    (photos / "cat" / "0.png").rename(photos / "cat" / "0")
    for name in ("a.HEIC", "b.HEIC", "notes"):
        (photos / "dog" / name).write_text("not an image")
    assert counts(load_class_folders("train_dir", str(photos))) == {"cat": 3, "dog": 3}
    assert "2 files .HEIC, 1 file without extension skipped" in caplog.text


def test_a_class_without_an_image_is_refused(photos):
    (photos / "heic").mkdir()
    (photos / "heic" / "a.HEIC").write_text("")
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"2 of the 4 .* \(empty: no files; heic: 1 file \.HEIC\)"):
        load_class_folders("train_dir", str(photos))


def test_nested_folders_belong_to_their_class(photos, caplog):
    image_folder(photos / "cat", ("red", "black"), 2)
    assert counts(load_class_folders("train_dir", str(photos))) == {"cat": 7, "dog": 3}
    assert "belong to that class: cat" in caplog.text


def test_what_lies_beside_the_folders_is_named(photos, caplog):
    picture(0).save(photos / "loose.png")
    (photos / "metadata.csv").write_text("file_name,label\ncat/0.png,dog\n")
    dataset = load_class_folders("train_dir", str(photos))
    assert counts(dataset) == {"cat": 3, "dog": 3} and dataset[0]["image"].size == (8, 8)
    assert "1 images lie beside" in caplog.text and "metadata.csv is not read" in caplog.text


def test_a_link_to_a_folder_above_is_no_class(photos, caplog):
    os.symlink(photos, photos / "self")
    os.symlink(photos, photos / "cat" / "up")
    assert counts(load_class_folders("train_dir", str(photos))) == {"cat": 3, "dog": 3}
    assert "links to a folder above are not followed: self" in caplog.text


def test_what_pillow_only_writes_is_no_image(photos, caplog):
    (photos / "cat" / "a.pdf").write_text("")
    assert counts(load_class_folders("train_dir", str(photos))) == {"cat": 3, "dog": 3} and "1 file .pdf" in caplog.text
