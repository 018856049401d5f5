"""What class weights may be written as, the tensor that they mean, and the labels that "balanced" counts."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from maxsup_hf import MaxSupTrainingArguments
from maxsup_hf.data.label_counts import count_classes
from maxsup_hf.trainer.class_weights import balanced, parse_class_weights, resolve_class_weights, weights_for_training
from tests import tiny

NAMES = {0: "ant", 1: "bee", 2: "cow"}


def bert(cls=BertForSequenceClassification, **config):
    small = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    return cls(BertConfig(**small, **{"id2label": NAMES, **config}))


# ---- how they are written ----


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        (" balanced ", "balanced"),
        ("1,20,0.5", [1.0, 20.0, 0.5]),
        ("[1, 20, 0.5]", [1.0, 20.0, 0.5]),
        ("1e-3, 2", [0.001, 2.0]),
        ([1, "1e-3"], [1.0, 0.001]),  # YAML reads 1e-3 as a string
        ((1, 0), [1.0, 0.0]),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (np.array([1, 2]), [1.0, 2.0]),
        ('{"ant": 1, "bee": 2.5}', {"ant": 1.0, "bee": 2.5}),
        ({0: 1, "bee": 2}, {"0": 1.0, "bee": 2.0}),
    ],
)
def test_what_may_be_written(given, meant):
    assert parse_class_weights(given) == meant
    args = MaxSupTrainingArguments("out", use_cpu=True, class_weights=given)
    assert args.class_weights == meant and parse_class_weights(args.class_weights) == meant
    json.dumps(args.class_weights)  # training arguments are written as JSON


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("even", ValueError, "must be 'balanced', numbers or a JSON object, got 'even'; write balanced"),
        ("", ValueError, "got ''; write balanced"),
        ("1,two", ValueError, "got '1,two'"),
        ("[1, 2", ValueError, "class_weights is not valid JSON .* got '\\[1, 2'"),
        ([1.0, -1.0], ValueError, r"class_weights\[1\] must be a finite number that is not negative .*got -1.0"),
        ("nan,1", ValueError, r"class_weights\[0\] must be a finite .* got nan"),
        ('{"ant": Infinity}', ValueError, "class_weights of 'ant' must be a finite .* got inf"),
        ([True, 1.0], ValueError, r"class_weights\[0\] .* got True"),
        ([[1.0], 2.0], ValueError, r"class_weights\[0\] .* got \[1.0\]"),
        ([0.0, 0.0], ValueError, r"at least one weight above 0, got \[0.0, 0.0\]"),
        ({}, ValueError, r"at least one weight above 0, got \[\]"),
        (3.0, TypeError, "must be 'balanced', a list of numbers or a mapping from class names, got 3.0"),
        (torch.tensor(3.0), TypeError, "got 3.0"),
    ],
)
def test_what_is_refused_when_it_is_written(given, error, message):
    with pytest.raises(error, match=f"class_weights.*{message.removeprefix('class_weights')}"):
        MaxSupTrainingArguments("out", use_cpu=True, class_weights=given)


def test_language_models_have_no_classes_to_weight():
    with pytest.raises(ValueError, match="class_weights are for classifiers, and fused_linear_loss is for language models"):
        MaxSupTrainingArguments("out", use_cpu=True, class_weights="balanced", fused_linear_loss=True)


# ---- what they mean ----


@pytest.mark.parametrize("given", [[1, 20, 0.5], {"cow": 0.5, "ant": 1, "bee": 20}, "1,20,0.5"])
def test_a_list_and_a_mapping(given):
    weights = resolve_class_weights(given, 3, id2label=NAMES)
    assert weights.dtype == torch.float32 and weights.tolist() == [1.0, 20.0, 0.5]


@pytest.mark.parametrize("seed", range(5))
def test_balanced_is_that_of_scikit_learn(seed):
    labels = np.random.default_rng(seed).choice(4, size=200, p=[0.7, 0.2, 0.05, 0.05])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    counts = torch.from_numpy(np.bincount(labels, minlength=4))
    weights = resolve_class_weights("balanced", 4, count=lambda: counts)
    torch.testing.assert_close(weights, torch.from_numpy(expected).float())
    assert (weights * counts).sum().item() == pytest.approx(
        200, rel=1e-6
    )  # the sum of the weights of all rows is their number


def test_balanced_needs_every_class():
    with pytest.raises(ValueError, match="class_weights='balanced' needs labels of every class .* none of 'bee', 'cow'"):
        balanced(torch.tensor([3, 0, 0]), ["ant", "bee", "cow"])
    with pytest.raises(TypeError, match="class_weights='balanced' needs training data"):
        resolve_class_weights("balanced", 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, 2.0], "one weight for each of the model's 3 classes, got 2"),
        ({"ant": 1, "bee": 2, "yak": 1}, "got unknown: 'yak'; missing: 'cow'. Correct the names"),
        ({"ant": 1}, "must name each of the model's 3 classes once .* missing: 'bee', 'cow'"),
    ],
)
def test_what_does_not_fit_the_classes_is_named(given, message):
    with pytest.raises(ValueError, match=f"class_weights.*{message}"):
        resolve_class_weights(given, 3, id2label=NAMES)


def test_without_names_classes_are_numbered():
    assert resolve_class_weights({"1": 3, "0": 2}, 2).tolist() == [2.0, 3.0]


# ---- counting ----


class NoReading(Exception):
    pass


def forbidden(batch):
    raise NoReading


ROWS = [{"labels": 2, "x": 1}, {"labels": 0, "x": 2}, {"labels": 2, "x": 3}, {"labels": -100, "x": 4}]


@pytest.mark.parametrize("name", ["labels", "label", "label_ids"])
@pytest.mark.parametrize("kind", ["list", "map", "sized iterable", "datasets"])
def test_labels_of_rows(kind, name):
    rows = [{name: row["labels"], "x": row["x"]} for row in ROWS]
    made = {
        "list": rows,
        "map": tiny.ItemsOnly(rows),
        "sized iterable": dict.fromkeys(map(lambda row: Row(row), rows)).keys(),
        "datasets": datasets.Dataset.from_list(rows),
    }
    assert count_classes(made[kind], 3).tolist() == [1, 0, 2]


class Row(dict):
    """A row that can be a key: keys of a dict have a length and are iterable, and cannot be indexed."""

    __hash__ = object.__hash__


def test_only_the_label_column_of_a_dataset_is_read():
    data = datasets.Dataset.from_list(ROWS).with_transform(forbidden)
    with pytest.raises(NoReading):
        data[0]
    assert count_classes(data, 3).tolist() == [1, 0, 2]
    assert count_classes(data.select([0, 0, 1]), 3).tolist() == [1, 0, 2]


def test_labels_of_tokens():
    rows = [{"labels": [-100, 0, 2, -100]}, {"labels": [1]}, {"labels": [2, 2]}, {"labels": []}]
    for data in (rows, datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows).select([3, 2, 1, 0])):
        assert count_classes(data, 3).tolist() == [1, 1, 3]
    # a transform that makes labels of tokens is asked; what is stored are those of words
    made = datasets.Dataset.from_list(rows).with_transform(lambda batch: {"labels": [[-100, *x] for x in batch["labels"]]})
    assert count_classes(made, 3).tolist() == [1, 1, 3]


def test_pixels_of_masks_as_they_are_trained_on():
    masks = [np.array([[0, 255], [2, 2]], np.uint8), np.array([[1, 1], [255, 1]], np.uint8)]
    stored = datasets.Dataset.from_dict({"mask": [mask.tolist() for mask in masks]})

    def larger(batch):
        return {"labels": [torch.tensor(mask).repeat(2, 2) for mask in batch["mask"]]}

    assert count_classes(stored.with_transform(larger), 3, ignore_index=255).tolist() == [4, 12, 8]
    assert count_classes([{"labels": mask} for mask in masks], 3, ignore_index=255).tolist() == [1, 3, 2]


class Stream(torch.utils.data.IterableDataset):
    def __len__(self):
        return 4

    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), TypeError, "IterableDataset has no length"),
        (Stream(), TypeError, "Stream has no length and may be read only once"),
        ([{"x": 1}], ValueError, "must have their labels under one of 'labels', 'label', 'label_ids', got 'x'"),
        ([(1, 2)], TypeError, "rows of the data set must be mappings with labels, got tuple"),
        ([{"labels": 0.5}], TypeError, "'labels' of the data set must hold integer labels"),
        (
            datasets.Dataset.from_dict({"labels": [[0.5, 0.5]]}),
            TypeError,
            "'labels' of the data set must hold integer labels",
        ),
        ([{"labels": 3}], ValueError, r"labels must lie in \[0, 3\) or be -100, .* labels from 3 to 3"),
    ],
)
def test_what_cannot_be_counted(data, error, message):
    with pytest.raises(error, match=message):
        count_classes(data, 3)
    with pytest.raises(error, match=f"class_weights='balanced': .*{message}.*pass the weights as numbers"):
        weights_for_training("balanced", bert(), data)


# ---- of a model and its data ----


def test_of_a_classifier():
    data = [{"labels": k} for k in (0, 0, 1, 2, 2, 2)]
    assert weights_for_training(None, bert(), data) is None
    assert weights_for_training("balanced", bert(), data).tolist() == pytest.approx([1.0, 2.0, 2 / 3])
    assert weights_for_training({"ant": 1, "bee": 2, "cow": 3}, bert(), None).tolist() == [1.0, 2.0, 3.0]
    moved = [{"kind": row["labels"]} for row in data]
    assert weights_for_training("balanced", bert(), moved, label_names=["kind"]).tolist()[1] == 2.0


def test_of_tokens():
    data = [{"labels": [-100, 0, 0, 1]}, {"labels": [2, 2]}]
    assert weights_for_training("balanced", bert(BertForTokenClassification), data).tolist() == pytest.approx(
        [5 / 6, 5 / 3, 5 / 6]
    )


@pytest.mark.parametrize("ignored", [255, 7])
def test_of_pixels_without_those_that_the_head_ignores(ignored):
    config = SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[8], patch_sizes=[3], strides=[2],
        num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=8, num_labels=2, semantic_loss_ignore_index=ignored,
    )  # fmt: skip
    data = [{"labels": torch.tensor([[0, 0, 1], [ignored, 0, 0]])}]
    weights = weights_for_training("balanced", SegformerForSemanticSegmentation(config), data)
    assert weights.tolist() == pytest.approx([5 / 8, 5 / 2])


@pytest.mark.parametrize("head", [BertForMaskedLM, BertLMHeadModel, BertForQuestionAnswering, BertForMultipleChoice])
def test_heads_that_do_not_classify_are_refused_by_name(head):
    with pytest.raises(
        ValueError, match=f"class_weights are for heads that pick one of K classes .* {head.__name__} does not"
    ):
        weights_for_training([1.0, 2.0, 3.0], bert(head), None)
    with pytest.raises(ValueError, match="LlamaForCausalLM does not"):
        weights_for_training("balanced", tiny.llama(), None)


def test_heads_of_ones_own():
    class Derived(BertForSequenceClassification):
        pass

    class Own(nn.Module):
        pass

    assert weights_for_training([1, 2, 3], bert(Derived), None).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="the model's 3 classes, got 2"):
        weights_for_training([1, 2], bert(Derived), None)
    assert weights_for_training([1, 2], Own(), None).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="class_weights='balanced' needs to know the classes, but Own has no config"):
        weights_for_training("balanced", Own(), [{"labels": 0}])


def test_under_an_adapter():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert weights_for_training({"ant": 1, "bee": 2, "cow": 3}, model, None).tolist() == [1.0, 2.0, 3.0]
    assert math.isclose(weights_for_training("balanced", model, [{"label": k} for k in (0, 1, 2)])[0].item(), 1.0)
