"""Semantic segmentation, from input to saved model."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    SegformerConfig,
    ViTImageProcessorPil,
    pipeline,
)

from maxsup_hf.data.builtin_scenes import digit_scenes
from maxsup_hf.metrics import confusion_matrix, mean_iou, per_class, pixel_accuracy
from maxsup_hf.scripts import semantic_segmentation
from maxsup_hf.scripts.common.summary import describe
from tests.scripts.conftest import NEEDS_TORCHVISION, NO_SEGFORMER, picture, results, write

pytestmark = pytest.mark.skipif(NO_SEGFORMER, reason=NEEDS_TORCHVISION)

SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--max_eval_samples", "6", "--disable_tqdm", "true"]


def run(*argv):
    semantic_segmentation.main([*argv, *SHORT])


def prepare(*argv):
    return semantic_segmentation.prepare([*argv, "--output_dir", "x"])


def mask(seed, classes=3, size=(12, 10), ignored=True):
    """A picture of classes, 0 to `classes` - 1, whose first row is ignored."""
    values = np.random.default_rng(seed).integers(0, classes, size, dtype=np.uint8)
    values.flat[-1] = classes - 1
    if ignored:
        values[0] = 255
    return Image.fromarray(values)


def photo(seed):
    return picture(seed, 12).crop((0, 0, 10, 12))


def folder(root, count=6, classes=3):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        photo(i).save(root / "images" / f"{i}.jpg")
        mask(i, classes).save(root / "masks" / f"{i}.png")
    return str(root)


def table(masks, images=None, name="train.parquet"):
    images = [photo(i) for i in range(len(masks))] if images is None else images
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    return write(name, datasets.Dataset.from_dict({"image": images, "mask": masks}, features))


def test_without_data(capsys):
    run()
    where = "outputs/semantic-segmentation"
    assert capsys.readouterr().out.strip().endswith(f"saved to {where}")
    assert {"train_loss", "eval_loss", "eval_mean_iou", "eval_pixel_accuracy", "eval_samples"} <= set(results(where))
    found = pipeline("image-segmentation", model=where)(digit_scenes()[0]["image"].convert("RGB"))
    assert {segment["label"] for segment in found} <= {"background", *"0123456789"}
    assert all(segment["mask"].size == (40, 40) for segment in found)


def test_saved_model_gives_the_reported_metrics():
    semantic_segmentation.main([*SHORT, "--max_steps", "15", "--per_device_eval_batch_size", "4", "--output_dir", "run"])
    model = AutoModelForSemanticSegmentation.from_pretrained("run").eval()
    processor = AutoImageProcessor.from_pretrained("run")
    rows = prepare(*SHORT).trainer.eval_dataset.with_format(None)
    with torch.no_grad():
        outputs = model(**processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt"))
    found = processor.post_process_semantic_segmentation(outputs, [(40, 40)] * len(rows))
    confusion = confusion_matrix(np.stack(found), np.stack(rows["mask"]), 11)
    assert results("run")["eval_mean_iou"] == pytest.approx(mean_iou(confusion))
    assert results("run")["eval_pixel_accuracy"] == pytest.approx(pixel_accuracy(confusion))


def test_folders_with_a_test_set_and_fine_tuning(tmp_path):
    flags = ["--train_dir", folder(tmp_path / "train"), "--test_dir", folder(tmp_path / "test", 3, 2)]
    run(*flags, "--class_names", "sky, sea,sand", "--image_size", "16", "--output_dir", "first")
    assert {"test_mean_iou", "test_pixel_accuracy", "test_samples"} <= set(results("first"))
    model = AutoModelForSemanticSegmentation.from_pretrained("first")
    assert model.config.id2label == {0: "sky", 1: "sea", 2: "sand"}
    assert AutoImageProcessor.from_pretrained("first").size == {"height": 16, "width": 16}
    trainer = prepare(*flags, "--model_name_or_path", "first").trainer
    assert trainer.model.config.id2label == model.config.id2label, "as many classes: the same ones"
    assert (trainer.model.decode_head.classifier.weight == model.decode_head.classifier.weight).all()
    trainer = prepare(*flags, "--model_name_or_path", "first", "--class_names", "a,b,c,d").trainer
    assert trainer.model.config.num_labels == 4
    (tmp_path / "train" / "masks" / "0.png").rename(tmp_path / "train" / "masks" / "zero.png")
    with pytest.raises(ValueError, match=r"train_dir: every image needs a mask.*; 2 in .* have none: 0, zero"):
        prepare(*flags)
    with pytest.raises(FileNotFoundError, match="train_dir: there is no folder 'nowhere/images'"):
        prepare("--train_dir", "nowhere")


def test_a_run_begins_with_the_pixels_of_each_class(tmp_path, capsys):
    flags = ["--train_dir", folder(tmp_path / "train"), "--class_names", "sky,sea,sand,ice"]
    job = prepare(*flags)
    masks = job.trainer.train_dataset.with_format(None)["mask"]  # without what is held out
    sky, sea, sand, ice = np.bincount(np.concatenate([np.asarray(each).ravel() for each in masks]), minlength=256)[:4]
    describe(job)
    said = capsys.readouterr().out
    assert f"4 classes, in pixels: sky ({sky:,}), sea ({sea:,}), sand ({sand:,}), ice (0)" in said and ice == 0 < sky
    assert "rarest class: ice (0)" in said
    describe(prepare(*flags, "--skip_image_check", "true"))
    said = capsys.readouterr().out
    assert "4 classes: sky, sea, sand, ice\npixels of each class: not counted (skip_image_check)" in said


def test_masks_reach_the_model_as_they_are():
    trainer = prepare("--train_file", table([mask(i) for i in range(6)]), "--image_size", "24").trainer
    batch = next(iter(trainer.get_eval_dataloader()))
    assert batch["pixel_values"].shape == (1, 3, 24, 24) and batch["labels"].dtype == torch.int64
    values = np.asarray(trainer.eval_dataset.with_format(None)[0]["mask"])
    rows, columns = ((2 * np.arange(24) + 1) * n // 48 for n in values.shape)  # the nearest pixel
    assert (batch["labels"][0].numpy() == values[rows][:, columns]).all()


def test_paths_palettes_and_a_config_of_the_user():
    for i in range(6):
        photo(i).save(f"{i}.png")
        colours = mask(i, 4)
        colours.putpalette([value % 256 for value in range(0, 768 * 7, 7)])  # the indices stay
        colours.save(f"mask-{i}.png")
    write("train.csv", {"image": [f"{i}.png" for i in range(6)], "mask": [f"mask-{i}.png" for i in range(6)]})
    SegformerConfig(
        num_encoder_blocks=1, depths=[1], hidden_sizes=[8], decoder_hidden_size=8, num_attention_heads=[1], sr_ratios=[1],
        semantic_loss_ignore_index=255,
    ).save_pretrained("segformer")  # fmt: skip
    run("--train_file", "train.csv", "--config_name", "segformer", "--output_dir", "run")
    assert AutoModelForSemanticSegmentation.from_pretrained("run").config.id2label == {i: str(i) for i in range(4)}


def test_metrics_of_batches_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 3, (4, 5, 5)), rng.integers(0, 3, (4, 5, 5))
    labels[:, 0] = 255
    metrics = semantic_segmentation.SegmentationMetrics(["a", "b", "c"], 255)
    whole = confusion_matrix(predictions, labels, 3)
    for _ in range(2):  # it starts over after each evaluation
        assert metrics(EvalPrediction(torch.tensor(predictions[:3]), torch.tensor(labels[:3])), False) == {}
        found = metrics(EvalPrediction(torch.tensor(predictions[3:]), torch.tensor(labels[3:])), True)
        assert found == {"mean_iou": mean_iou(whole), "pixel_accuracy": pixel_accuracy(whole)}
        counted = labels != 255
        assert metrics.scores == per_class(labels[counted], predictions[counted], ["a", "b", "c"])


def test_predictions_are_scaled_up_to_the_masks():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 2, 0, 0] = logits[0, 1, 1, 1] = 5.0
    classes = semantic_segmentation.predicted_classes((logits, None), torch.zeros(1, 8, 6))
    assert classes.shape == (1, 8, 6)
    assert (classes[0, 0, 0], classes[0, 7, 5], classes[0, 0, 5]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("masks", "argv", "message"),
    [
        (
            [mask(0), mask(1, 7)],
            ["--class_names", "a,b,c"],
            "row 1 of the train data has the value 6, but class_names",
        ),
        ([mask(0), mask(1, size=(12, 9))], [], "mask in row 1 of the train data is 9x12 pixels, its image 10x12"),
        ([mask(0), photo(1)], [], r"mask, row 1 of the train data.*one channel of class indices, got an image of mode RGB"),
        ([mask(0, 1), mask(1, 1)], [], "masks of the training data have 1 classes"),
        ([mask(0), mask(1)], ["--class_names", "a,,c"], "class_names must be different names"),
        ([mask(0), mask(1)], ["--label_column_name", "maks"], r"no column 'maks'. Columns: image \(Image\), mask \(Image\)"),
        ([mask(0), mask(1)], ["--image_size", "0"], "image_size must be between 1 and"),
        ([mask(0)], [], "1 row, too few to hold one out"),
        ([Image.new("L", (10, 12), 255)] * 2, ["--class_names", "a,b"], "all pixels of the training masks are 255"),
    ],
)
def test_bad_masks(masks, argv, message):
    with pytest.raises(ValueError, match=message):
        prepare("--train_file", table(masks), *argv)


def test_value_that_the_training_masks_lack():
    train, validation = table([mask(0), mask(1)]), table([mask(0, 2), mask(1, 5)], name="validation.parquet")
    with pytest.raises(
        ValueError, match="row 1 of the validation data has the value 4, but the training data has 3 classes"
    ):
        prepare("--train_file", train, "--validation_file", validation)
    names = ["--class_names", "a,b,c,d,e"]
    assert prepare("--train_file", train, "--validation_file", validation, *names).trainer.model.config.num_labels == 5


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({"image": ["a.png"], "mask": ["no.png"]}, ValueError, "image_column_name: 1 of 1 images of the train data cannot"),
        (
            {"image": [1], "mask": ["a.png"]},
            TypeError,
            "column 'image' .* must hold images, their bytes, or paths, not int64",
        ),
        ({"image": ["a.png", None], "mask": ["a.png", "a.png"]}, ValueError, "'image' of the train data has 1 missing"),
        ({"image": ["a.png"], "x": ["b"]}, ValueError, r"label_column_name: the column could not be found.*Columns: image"),
    ],
)
def test_bad_tables(rows, error, message):
    with pytest.raises(error, match=message):
        prepare("--train_file", write("train.jsonl", rows))


def test_processor_without_masks():
    ViTImageProcessorPil().save_pretrained("vit")
    with pytest.raises(ValueError, match="image_processor_name: the image processor of 'vit', .* does not take masks"):
        prepare("--train_file", table([mask(0), mask(1)]), "--image_processor_name", "vit")
