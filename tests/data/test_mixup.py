"""Mixed images and their soft labels. (Targets against timm's and torchvision's figures: tests/losses/test_golden.py.)"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, MixupCollator, compute_loss_func
from maxsup_hf.data.mixup import mix_targets
from tests import tiny


def examples(size, seed=0):
    return tiny.rows(tiny.batch("vit", size=size, seed=seed))


def shares_of(batch, originals, rows):
    """How much of each pixel of an example is its own, found again from the mixed image."""
    images = torch.stack([example["pixel_values"] for example in originals])
    partner = images.flip(0)
    return [((batch["pixel_values"][i] - partner[i]) / (images[i] - partner[i])).mean(0) for i in rows]


@given(
    size=st.integers(1, 7),
    mode=st.sampled_from(["batch", "pair", "elem"]),
    alphas=st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.4, 0.7)]),
    seed=st.integers(0, 2**31),
)
def test_labels_are_mixed_as_the_images_are(size, mode, alphas, seed):
    torch.manual_seed(seed)
    originals = examples(size, seed=seed % 100)
    batch = MixupCollator(tiny.CLASSES, *alphas, mode=mode)(originals)
    labels = torch.stack([example["labels"] for example in originals])
    assert torch.equal(batch["labels"], labels)
    assert batch["soft_labels"].shape == (size, tiny.CLASSES) and batch["soft_labels"].dtype == torch.float32
    own = [i for i in range(size) if i != size - 1 - i]
    for i, kept in zip(own, shares_of(batch, originals, own), strict=True):
        lam = kept.mean().item()
        expected = torch.zeros(tiny.CLASSES)
        expected[labels[i]] += lam
        expected[labels[size - 1 - i]] += 1 - lam
        torch.testing.assert_close(batch["soft_labels"][i], expected, atol=1e-3, rtol=0)
        cut = (kept - kept.round()).abs().max() < 1e-3
        constant = (kept - lam).abs().max() < 1e-3
        assert (alphas[1] > 0 and cut) or (alphas[0] > 0 and constant)
    for i in set(range(size)) - set(own):  # its own partner
        torch.testing.assert_close(batch["pixel_values"][i], originals[i]["pixel_values"])


@pytest.mark.parametrize(("mode", "values"), [("batch", 1), ("pair", 4), ("elem", 8)])
def test_how_often_lambda_is_drawn(mode, values):
    torch.manual_seed(0)
    batch = MixupCollator(tiny.CLASSES, mode=mode)(data := examples(8))
    lams = [round(kept.mean().item(), 4) for kept in shares_of(batch, data, range(8))]
    assert len(set(lams)) == values
    if mode == "pair":
        assert lams == lams[::-1]


def test_probabilities():
    data = examples(64)
    untouched = MixupCollator(tiny.CLASSES, prob=0.0)(data)
    assert torch.equal(untouched["pixel_values"], torch.stack([example["pixel_values"] for example in data]))
    assert untouched["soft_labels"].max(-1).values.min() == 1
    torch.manual_seed(0)
    boxes = 0
    for _ in range(200):
        batch = MixupCollator(tiny.CLASSES, 1.0, 1.0, switch_prob=0.25)(data[:2])
        (kept,) = shares_of(batch, data[:2], [0])
        boxes += (kept - kept.round()).abs().max().item() < 1e-3
    assert 30 <= boxes <= 75  # 50 are expected


def test_drawn_from_torchs_generator():
    batches = []
    for _ in range(2):
        torch.manual_seed(5)
        batches.append(MixupCollator(tiny.CLASSES, 0.3, 0.3, mode="elem")(examples(6)))
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])


def test_a_transform_of_images_and_labels():
    def transform(images, labels):  # what torchvision's v2.MixUp and v2.CutMix take and give
        return images.roll(1, 0), mix_targets(labels, tiny.CLASSES, 0.5, pairing="roll")

    batch = MixupCollator(tiny.CLASSES, transform=transform)(data := examples(4))
    assert torch.equal(batch["pixel_values"][1], data[0]["pixel_values"])
    labels = torch.stack([example["labels"] for example in data])
    assert torch.equal(batch["soft_labels"], mix_targets(labels, tiny.CLASSES, 0.5, pairing="roll"))


def arguments(kind, folder, **kwargs):
    return kind(
        str(folder), use_cpu=True, disable_tqdm=True, max_steps=4, save_strategy="no",
        per_device_train_batch_size=2, gradient_accumulation_steps=2, remove_unused_columns=False, **kwargs,
    )  # fmt: skip


EVALUATE = {"eval_strategy": "steps", "eval_steps": 2}


class Seen:
    """`compute_metrics` that keeps the labels, and a model's inputs."""

    def __init__(self, model):
        self.labels, self.images = [], []
        model.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, module, args, kwargs):
        self.images.append((module.training, kwargs["pixel_values"].clone()))

    def __call__(self, prediction):
        self.labels.append(prediction.label_ids)
        return {}


def check_who_saw_what(seen, data):
    whole = torch.stack([example["pixel_values"] for example in data])
    trained = [image for training, batch in seen.images if training for image in batch]
    evaluated = [image for training, batch in seen.images if not training for image in batch]
    assert len(trained) == 16 and len(evaluated) == 2 * len(data)
    assert all(any(torch.equal(image, other) for other in whole) for image in evaluated)
    assert not any(torch.equal(image, other) for image in trained for other in whole)
    assert all(labels.shape == (len(data),) and labels.dtype.kind == "i" for labels in seen.labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_our_trainer_mixes_in_training_only(workers, tmp_path):
    data, model = examples(8), tiny.vit()
    seen = Seen(model)
    args = arguments(MaxSupTrainingArguments, tmp_path, dataloader_num_workers=workers, **EVALUATE)
    mixup = MixupCollator(tiny.CLASSES, 1.0)
    MaxSupTrainer(model, args, data_collator=mixup, train_dataset=data, eval_dataset=data, compute_metrics=seen).train()
    check_who_saw_what(seen, data)


def test_a_stock_trainer_mixes_in_training_only(tmp_path):
    data, model = examples(8), tiny.vit()
    seen = Seen(model)
    loss = compute_loss_func("maxsup", model=model)
    mixup = MixupCollator(tiny.CLASSES, 1.0, soft_labels_as="labels")
    args = arguments(TrainingArguments, tmp_path, **EVALUATE)
    Trainer(model, args, train_dataset=data, eval_dataset=data, compute_metrics=seen, compute_loss_func=loss,
            callbacks=[loss, mixup]).train()  # fmt: skip
    check_who_saw_what(seen, data)


def test_both_trainers_divide_by_rows(tmp_path):
    """Mixed once, then the same batch in both: the stock Trainer counts a soft label as K items, ours and the function do
    not."""
    data = dict(tiny.batch("vit", size=8))
    soft = mix_targets(data.pop("labels"), tiny.CLASSES, 0.3)
    ours_model, stock_model = tiny.vit(), tiny.vit()
    stock_model.load_state_dict(ours_model.state_dict())
    ours = MaxSupTrainer(ours_model, arguments(MaxSupTrainingArguments, tmp_path))
    loss = compute_loss_func("maxsup", model=stock_model)
    stock = Trainer(stock_model, arguments(TrainingArguments, tmp_path), compute_loss_func=loss, callbacks=[loss])
    loss.progress = 0.0
    value, gradient = tiny.gradients(ours, tiny.cut(data | {"soft_labels": soft}, [3, 3, 2]))
    other, reference = tiny.gradients(stock, tiny.cut(data | {"labels": soft}, [3, 3, 2]))
    assert value == pytest.approx(other, rel=1e-5)
    assert tiny.relative_error(gradient, reference) <= 1e-6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mixup_alpha": -1}, "mixup_alpha must be at least 0, got -1"),
        ({"mixup_alpha": 0}, "both 0, which mixes nothing"),
        ({"prob": 1.5}, r"prob must be in \[0, 1\], got 1.5"),
        ({"switch_prob": float("nan")}, r"switch_prob must be in \[0, 1\]"),
        ({"mode": "half"}, "mode must be one of 'batch', 'pair', 'elem', got 'half'"),
        ({"soft_labels_as": "label"}, "soft_labels_as must be 'soft_labels' or 'labels', got 'label'"),
    ],
)
def test_arguments_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MixupCollator(tiny.CLASSES, **kwargs)


def test_batches_are_checked():
    with pytest.raises(ValueError, match="no images to mix under 'pixel_values' .it has: input_ids, labels"):
        MixupCollator(tiny.CLASSES)([{"input_ids": [1, 2], "labels": 1}])
    with pytest.raises(ValueError, match="labels must be one integer class index for each image"):
        MixupCollator(tiny.CLASSES)([{"pixel_values": torch.zeros(3, 4, 4), "labels": 0.5}])


def test_a_loss_that_asks_for_the_true_class_refuses_mixed_ones(tmp_path):
    args = arguments(MaxSupTrainingArguments, tmp_path, loss="zipf_label_smoothing")
    trainer = MaxSupTrainer(tiny.vit(), args, data_collator=MixupCollator(tiny.CLASSES), train_dataset=examples(8))
    with pytest.raises(ValueError, match="loss 'zipf_label_smoothing' needs integer labels, got soft ones"):
        trainer.train()
