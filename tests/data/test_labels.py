"""Class labels of any kind become indices and names."""

import datasets
import pytest

from maxsup_hf.data.labels import encode_labels, find_label_column
from tests.data.conftest import table


def test_label_column_by_type_then_name():
    classes = datasets.ClassLabel(names=["n", "y"])
    assert find_label_column(table(label=[1], kind=[0]).cast_column("kind", classes), None) == "kind"
    assert find_label_column(table(x=[1], target=["a"]), None) == "target"
    both = table(coarse=[0], fine=[0]).cast_column("coarse", classes).cast_column("fine", classes)
    with pytest.raises(
        ValueError, match=r"label_column_name: the column could be any of coarse, fine.*coarse \(ClassLabel\)"
    ):
        find_label_column(both, None)


def encode(train, validation=None, order=(), **kwargs):
    splits = {"train": table(x=list(range(len(train))), label=train)}
    if validation is not None:
        splits["validation"] = table(x=list(range(len(validation))), label=validation)
    encoded, names = encode_labels(splits, "label", ["x"], order, **kwargs)
    return {split: list(dataset["labels"]) for split, dataset in encoded.items()}, names


def test_integers_are_sorted_as_numbers():
    assert encode([10, 2, 10, 30], [30]) == ({"train": [1, 0, 1, 2], "validation": [2]}, ["2", "10", "30"])


def test_strings_and_booleans():
    assert encode(["b", "a", "b"]) == ({"train": [1, 0, 1]}, ["a", "b"])
    assert encode([True, False]) == ({"train": [1, 0]}, ["False", "True"])


def test_order_of_a_pretrained_head_is_kept_where_the_classes_are_the_same():
    assert encode(["b", "a", "b"], order=["b", "a"]) == ({"train": [0, 1, 0]}, ["b", "a"])
    assert encode(["b", "a", "b"], order=["b", "c"]) == ({"train": [1, 0, 1]}, ["a", "b"])


def evaluate(labels, order, names=None):
    test = table(x=list(range(len(labels))), label=labels)
    test = test.cast_column("label", datasets.ClassLabel(names=names)) if names else test
    encoded, found = encode_labels({"test": test}, "label", ["x"], order, only_these=True)
    return list(encoded["test"]["labels"]), found


def test_an_evaluation_without_training_data_takes_the_classes_of_the_model():
    assert evaluate(["b"], ["c", "b", "a"]) == ([1], ["c", "b", "a"])  # one class, not all of them
    assert evaluate([2, 0], ["c", "b", "a"]) == ([2, 0], ["c", "b", "a"])  # indices
    assert evaluate([2, 0], ["2", "1", "0"]) == ([0, 2], ["2", "1", "0"])  # names come first
    assert evaluate([0, 1], ["b", "a"], names=["a", "b"]) == ([1, 0], ["b", "a"])
    unnamed = ["LABEL_0", "LABEL_1"]
    assert evaluate([1, 1], unnamed) == ([1, 1], ["0", "1"])
    assert evaluate([1, 1], unnamed, names=["a", "b"]) == ([1, 1], ["a", "b"])
    with pytest.raises(ValueError, match=r"the classes of the model have no names \(LABEL_0, …\), so the labels in column"):
        evaluate(["a"], unnamed)
    for labels in (["d"], [3]):
        with pytest.raises(ValueError, match=r"labels that the model lacks: '[d3]'; its classes are c, b, a"):
            evaluate(labels, ["c", "b", "a"])


def test_class_labels_are_matched_by_name():
    train = table(x=[1, 2], label=[0, 1]).cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    validation = table(x=[3, 4], label=[0, 1]).cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))
    splits, names = encode_labels({"train": train, "validation": validation}, "label", ["x"])
    assert names == ["cat", "dog"]
    assert list(splits["train"]["labels"]) == [0, 1]
    assert list(splits["validation"]["labels"]) == [1, 0]
    assert splits["train"].column_names == ["x", "labels"]


@pytest.mark.parametrize(
    ("train", "validation", "error", "message"),
    [
        ([0.5, 1.5], None, TypeError, "is float64, which is a regression"),
        ([[0, 1], [1]], None, TypeError, "holds lists, which is multi-label"),
        ([{"a": 1}, {"a": 2}], None, TypeError, "labels must be class names, integers or strings"),
        ([1, 1, 1], None, ValueError, "'label' of the training data has a single class, '1'"),
        ([-100, -100], None, ValueError, "'label' of the train data is -100 in all rows, which is ignored"),
        ([0, 1], [-100], ValueError, "'label' of the validation data is -100 in all rows"),
        (["a", " ", ""], None, ValueError, "'label' of the train data has 2 blank labels in 3 rows"),
        ([1.0, float("inf")], None, TypeError, "is float64, which is a regression"),
        ([-1, 0, 1, -1], None, ValueError, r"has 2 negative labels \(the smallest is -1\)"),
        (["a", None, "b"], None, ValueError, "'label' of the train data has 1 missing values in 3 rows"),
        ([1.0, float("nan"), 2.0, None], None, ValueError, "has 2 missing values in 4 rows"),
        (["a", "b"], ["a", "c", "d"], ValueError, "validation data has labels that the training data lacks: 'c', 'd'"),
        (["a", "b"], ["a", None], ValueError, "'label' of the validation data has 1 missing"),
    ],
)
def test_bad_labels(train, validation, error, message):
    with pytest.raises(error, match=message):
        encode(train, validation)


def test_withheld_test_labels(caplog):
    train, hidden = table(x=[1, 2], label=[0, 1]), table(x=[3, 4], label=[-1, -1])
    splits = {"train": train, "test": hidden}
    assert list(encode_labels(splits, "label", ["x"], hidden_test=True)[0]) == ["train"]
    assert "will not be evaluated" in caplog.text
    with pytest.raises(ValueError, match="'label' of the test data has 2 negative labels"):
        encode_labels(splits, "label", ["x"])


def test_integers_stored_as_floats_are_classes():
    assert encode([2.0, 10.0, 2.0], [10.0]) == ({"train": [0, 1, 0], "validation": [1]}, ["2", "10"])


def test_classes_that_differ_only_by_case_or_spaces_are_named(caplog):
    encode(["World", " world ", "World\u00a0", "Sport"])
    assert r"case or spaces: ' world ', 'World', 'World\xa0'" in caplog.text and "Sport" not in caplog.text


def test_a_class_that_only_the_names_know_is_unseen():
    """As with `--dataset_name`: the ClassLabel has a class of which the training data has no row."""
    classes = datasets.ClassLabel(names=["cat", "dog", "slug"])
    train, test = (table(x=[1, 2], label=label).cast_column("label", classes) for label in ([0, 1], [0, 2]))
    with pytest.raises(ValueError, match="test data has labels that the training data lacks: 'slug'"):
        encode_labels({"train": train, "test": test}, "label", ["x"])
