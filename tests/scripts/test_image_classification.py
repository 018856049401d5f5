"""Image classification, from input to saved model."""

import errno
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, pipeline

from maxsup_hf.scripts import image_classification
from tests.scripts.conftest import image_folder, picture, results, write

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--max_eval_samples", "20", "--disable_tqdm", "true"]


def run(*argv):
    image_classification.main([*argv, *SHORT])


def test_without_data(capsys):
    run()
    folder = "outputs/image-classification"
    assert capsys.readouterr().out.strip().endswith(f"saved to {folder}")
    found = results(folder)
    assert {"train_loss", "eval_loss", "eval_accuracy", "eval_nll", "eval_ece", "train_samples", "eval_samples"} <= set(
        found
    )
    assert (found["train_samples"], found["eval_samples"]) == (1527, 20)
    assert found["eval_nll"] == pytest.approx(found["eval_loss"], rel=1e-4)
    classify = pipeline("image-classification", model=folder)
    assert {answer["label"] for answer in classify(picture(0), top_k=10)} == set("0123456789")
    run()
    assert results("outputs/image-classification-2") and results(folder) == found


def test_saved_model_gives_the_reported_accuracy():
    image_classification.main([*SHORT, "--max_steps", "20", "--per_device_train_batch_size", "32", "--output_dir", "run"])
    model = AutoModelForImageClassification.from_pretrained("run").eval()
    processor = AutoImageProcessor.from_pretrained("run")
    job = image_classification.prepare([*SHORT, "--output_dir", "other"])
    validation = job.trainer.eval_dataset.with_format(None)
    pixels = processor([image.convert("RGB") for image in validation["image"]], return_tensors="pt")
    right = model(**pixels).logits.argmax(-1).numpy() == np.array(validation["labels"])
    assert results("run")["eval_accuracy"] == pytest.approx(right.mean())
    assert right.mean() > 0.3


def test_image_folders_with_a_test_set(tmp_path):
    train = image_folder(tmp_path / "train", ("cat", "dog"))
    test = image_folder(tmp_path / "test", ("dog",), 3)  # one class alone is index 0 to its own folder
    run("--train_dir", train, "--test_dir", test, "--output_dir", "run", "--image_size", "16")
    assert {"test_accuracy", "test_nll", "test_ece", "test_samples"} <= set(results("run"))
    model = AutoModelForImageClassification.from_pretrained("run")
    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert AutoImageProcessor.from_pretrained("run").size == {"height": 16, "width": 16}
    job = image_classification.prepare(["--train_dir", train, "--test_dir", test, "--output_dir", "x"])
    assert set(job.test_dataset.with_format(None)["labels"]) == {1}


def test_a_folder_of_splits_is_not_one_of_classes(tmp_path):
    """Its classes are one level below: read as a folder of classes, it would train on the validation images too."""
    for split in ("train", "validation"):
        image_folder(tmp_path / "photos" / split, ("cat", "dog"))
    photos = str(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"a folder for each split \(train, validation\).*or all as --dataset_name"):
        image_classification.prepare(["--train_dir", photos, "--output_dir", "x"])
    job = image_classification.prepare(["--dataset_name", photos, "--output_dir", "x"])
    assert len(job.trainer.train_dataset) == len(job.trainer.eval_dataset)
    image_folder(tmp_path / "vehicles", ("train", "bus"))
    job = image_classification.prepare(["--train_dir", str(tmp_path / "vehicles"), "--output_dir", "x"])
    assert set(job.trainer.model.config.label2id) == {"train", "bus"}


def test_parquet_and_fine_tuning_in_the_order_of_the_head():
    images = [picture(i) for i in range(8)]
    table = datasets.Dataset.from_dict({"img": images, "kind": ["a", "b"] * 4}).cast_column("img", datasets.Image())
    write("train.parquet", table)
    flags = ["--train_file", "train.parquet", "--label_column_name", "kind"]
    run(*flags, "--output_dir", "first")
    model = AutoModelForImageClassification.from_pretrained("first")
    model.config.id2label, model.config.label2id = {0: "b", 1: "a"}, {"b": 0, "a": 1}
    model.save_pretrained("first")
    job = image_classification.prepare([*flags, "--model_name_or_path", "first", "--output_dir", "second"])
    assert job.trainer.model.config.id2label == {0: "b", 1: "a"}
    assert (job.trainer.model.classifier[1].weight == model.classifier[1].weight).all()
    rows = job.trainer.train_dataset.with_format(None)
    other = image_classification.prepare([*flags, "--output_dir", "third"]).trainer.train_dataset.with_format(None)
    assert [1 - label for label in rows["labels"]] == list(other["labels"])
    # another number of classes: a new head
    job = image_classification.prepare(["--model_name_or_path", "first", "--output_dir", "fourth"])
    assert job.trainer.model.config.num_labels == 10


def test_paths_in_a_csv_and_a_config_of_the_user():
    for i in range(8):
        picture(i).save(f"{i}.png")
    write("train.csv", {"path": [f"{i}.png" for i in range(8)], "label": [3, 5] * 4})
    ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=4
    ).save_pretrained("vit")
    run("--train_file", "train.csv", "--config_name", "vit", "--output_dir", "run")
    model = AutoModelForImageClassification.from_pretrained("run")
    assert model.config.model_type == "vit" and model.config.id2label == {0: "3", 1: "5"}
    assert AutoImageProcessor.from_pretrained("run").size == {"height": 12, "width": 12}


def test_dataset_saved_to_disk_with_splits():
    images = datasets.Dataset.from_dict({"image": [picture(i) for i in range(8)], "label": ["a", "b"] * 4})
    datasets.DatasetDict(train=images, dev=images.select([0, 1]), test=images.select([2])).save_to_disk("mine")
    job = image_classification.prepare(["--dataset_name", "mine", "--output_dir", "x"])
    sizes = [len(d) for d in (job.trainer.train_dataset, job.trainer.eval_dataset, job.test_dataset)]
    assert sizes == [8, 2, 1]
    names = ["--train_split_name", "test", "--validation_split_name", "train", "--test_split_name", "dev"]
    with pytest.raises(ValueError, match="single class"):
        image_classification.prepare(["--dataset_name", "mine", *names])


def test_same_seed_same_model_and_resume_continues():
    flags = ["--max_train_samples", "64", "--seed", "3", "--save_strategy", "steps", "--save_steps", "2"]
    short = ["--per_device_train_batch_size", "8", "--max_eval_samples", "20", "--disable_tqdm", "true"]
    image_classification.main([*flags, *short, "--max_steps", "4", "--output_dir", "whole"])
    image_classification.main([*flags, *short, "--max_steps", "4", "--output_dir", "again"])
    assert results("whole")["eval_nll"] == pytest.approx(results("again")["eval_nll"], rel=1e-6)
    resumed = ["--resume_from_checkpoint", "again/checkpoint-2", "--output_dir", "resumed"]
    image_classification.main([*flags, *short, "--max_steps", "4", *resumed])
    assert results("resumed")["eval_nll"] == pytest.approx(results("whole")["eval_nll"], rel=1e-5)


def test_a_finished_run_that_is_resumed(capsys, monkeypatch):
    flags = ["--max_train_samples", "64", "--save_strategy", "steps", "--save_steps", "1", "--output_dir", "run"]
    run(*flags)
    kept = {name: Path("run", name).read_bytes() for name in ("model.safetensors", "trainer_state.json", "run.json")}
    run(*flags, "--resume_from_checkpoint", "auto")
    assert "finished before, at step 2 of 2: nothing was trained" in capsys.readouterr().out
    assert {name: Path("run", name).read_bytes() for name in kept} == kept
    Path("run/run.json").unlink()
    Path("run/model.safetensors").unlink()  # as if it had been killed right after its last checkpoint
    run(*flags, "--resume_from_checkpoint", "auto")
    assert Path("run/model.safetensors").read_bytes() == kept["model.safetensors"] and Path("run/run.json").exists()

    refused(["--max_train_samples", "60"], "rows: 64 there, 60 here", flags, capsys)
    refused(["--class_weights", "balanced"], r"class_weights: None there, \[", flags, capsys)
    monkeypatch.setattr(image_classification, "load_splits", None)  # the others are refused before data are read
    refused(["--loss", "z_loss"], "was trained with another loss .loss: 'maxsup' there, 'z_loss' here", flags, capsys)
    refused(["--seed", "7"], "seed: 42 there, 7 here.*--resume_anyway", flags, capsys)


def refused(other, message, flags, capsys):
    """The run in `flags`, resumed with other flags, ends with one line."""
    with pytest.raises(SystemExit) as end:
        run(*flags, *other, "--resume_from_checkpoint", "auto")
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and line.startswith("error: ") and re.search(message, line)


@pytest.mark.parametrize(
    ("rows", "argv", "error", "message"),
    [
        (
            {"image": [1, 2], "label": [0, 1]},
            [],
            TypeError,
            "image_column_name: column 'image' .* images, their bytes, or paths, not int64",
        ),
        (
            {"image": ["no.png", "no.png"], "label": [0, 1]},
            [],
            ValueError,
            "2 of 2 images of the train data cannot be used.*row 0.*no.png",
        ),
        (
            {"image": ["t.txt", "t.txt"], "label": [0, 1]},
            [],
            ValueError,
            "2 of 2 images of the train data .*row 0 .*cannot identify",
        ),
        ({"image": [None, "no.png"], "label": [0, 1]}, [], ValueError, "'image' of the train data has 1 missing"),
        ({"a": [1, 2], "label": [0, 1]}, [], ValueError, r"image_column_name: .*Columns: a \(int64\), label \(int64\)"),
        ({"image": ["x", "y"], "label": [0, 1]}, ["--image_size", "0"], ValueError, "image_size must be between 1 and"),
        ({"image": ["x", "y"], "label": [0, 1]}, ["--train_dir", "d"], ValueError, "one kind of source"),
    ],
)
def test_bad_images(tmp_path, rows, argv, error, message):
    (tmp_path / "t.txt").write_text("not an image")
    write("train.parquet", rows)
    with pytest.raises(error, match=message):
        image_classification.prepare(["--train_file", "train.parquet", "--output_dir", "out", *argv])
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_images_are_named_before_training(tmp_path):
    photos = image_folder(tmp_path / "photos", ("cat", "dog"))
    broken = sorted(path for path in (tmp_path / "photos").rglob("*.*") if path.is_file())[1:3]
    for path in broken:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"2 of \d+ images of the train data cannot be used.*{broken[0].name}.*identify"):
        image_classification.prepare(["--train_dir", photos, "--output_dir", "out"])


def test_images_of_more_than_8_bits_are_refused(tmp_path):
    photos = image_folder(tmp_path / "photos", ("cat", "dog"))
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "photos" / "dog" / "deep.png")
    with pytest.raises(ValueError, match=r"1 of \d+ images of the train data cannot be used.*deep.png.*I;16 has more"):
        image_classification.prepare(["--train_dir", photos, "--output_dir", "out"])


def test_a_dry_run_counts_the_classes(tmp_path, capsys):
    photos = image_folder(tmp_path / "photos", ("cat", "dog"))
    image_classification.main(["--train_dir", photos, "--dry_run", "true", "--output_dir", "out"])
    assert re.search(r"^2 classes: cat \(\d+\), dog \(\d+\)$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted: continue from out/checkpoint-2 with --resume_from_checkpoint true"),
        (
            OSError(errno.ENOSPC, "No space left on device", "eval_results.json"),
            1,
            "error: [Errno 28] No space left on device: 'eval_results.json'. out/checkpoint-2 is complete: free some space "
            "and repeat the command with --resume_from_checkpoint true",
        ),
    ],
    ids=["ctrl-c", "disk full"],
)
def test_an_interruption_says_how_to_go_on(error, code, message, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise error

    monkeypatch.setattr("maxsup_hf.trainer.trainer.MaxSupTrainer.evaluate", interrupt)  # once, after the first epoch's steps
    flags = ["--max_train_samples", "64", "--output_dir", "out", "--save_strategy", "steps", "--save_steps", "1"]
    with pytest.raises(SystemExit) as end:
        image_classification.main([*flags, "--max_steps", "2", "--eval_strategy", "no"])
    assert end.value.code == code
    assert message in capsys.readouterr().err


def test_bad_folders(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "half" / "zebra").mkdir(parents=True)
    (tmp_path / "half" / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "half" / "cat" / "1.png")
    for argv, error, message in (
        (["--train_dir", "nowhere"], FileNotFoundError, "train_dir: there is no folder 'nowhere'"),
        (["--train_dir", "none"], ValueError, "train_dir: 'none' has no subfolders; put the images of each class"),
        (["--train_dir", "half"], ValueError, r"1 of the 2 in 'half' have none that can be read \(zebra: no files\)"),
        (["--train_dir", image_folder(tmp_path / "one", ("cat",))], ValueError, "single class, 'cat'"),
    ):
        with pytest.raises(error, match=message):
            image_classification.prepare(argv)
    assert not (tmp_path / "outputs").exists()


def test_mixup_from_the_command_line():
    run("--mixup_alpha", "0.8", "--cutmix_alpha", "1.0", "--output_dir", "run")
    assert results("run")["eval_samples"] == 20  # whole images, hard labels
    job = image_classification.prepare(["--cutmix_alpha", "1.0", "--mixup_mode", "elem", "--output_dir", "x"])
    batch = next(iter(job.trainer.get_train_dataloader()))
    assert batch["soft_labels"].shape == (64, 10) and "soft_labels" not in next(iter(job.trainer.get_eval_dataloader()))
    with pytest.raises(SystemExit):
        run("--mixup_alpha", "0.8", "--mixup_mode", "half", "--output_dir", "y")
