"""The built-in data sets."""

import numpy as np

from maxsup_hf.data.builtin import LANGUAGES, digits, names_in_languages
from maxsup_hf.data.builtin_names import TAGS, choices_of_names, questions_about_names, tagged_names
from maxsup_hf.data.builtin_scenes import digit_scenes
from maxsup_hf.data.builtin_texts import python_documentation, translated_phrases


def test_digits():
    dataset = digits()
    assert len(dataset) == 1797 and dataset[0]["image"].size == (8, 8)
    assert np.bincount(dataset["label"]).min() > 150


def test_names_in_languages():
    dataset = names_in_languages()
    assert len(dataset) > 10_000 and len(set(dataset["text"])) == len(dataset)
    assert np.bincount(dataset["label"], minlength=len(LANGUAGES)).min() > 300
    row = dataset["text"].index("Deutschland") if "Deutschland" in dataset["text"] else dataset["text"].index("Frankreich")
    assert dataset.features["label"].int2str(dataset[row]["label"]) == "de"
    assert dataset["text"][:50] == sorted(dataset["text"][:50])


def test_scenes():
    data = digit_scenes()
    values = np.stack(data["mask"])
    assert set(np.unique(values)) == {*range(11), 255}
    assert values.shape == (449, 40, 40)
    assert all((values == c).any((1, 2)).sum() > 100 for c in range(11)), "every class is in many images"


def test_paragraphs_are_read_once():
    data = python_documentation()
    paragraphs = [p for text in data["text"] for p in text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert sum(map(len, data["text"])) > 300_000


def test_phrases():
    data = translated_phrases()
    assert len(set(data["source"])) == len(data) > 5_000
    phrases = dict(zip(data["source"], data["target"], strict=True))
    assert phrases["Germany"] == "Deutschland"
    assert data["source"][:] == translated_phrases()["source"][:]


def test_sentences():
    rows = tagged_names()
    assert len(rows) > 5_000
    first = rows[0]
    assert len(first["tokens"]) == len(first["tags"])
    counts = np.bincount(np.concatenate(list(rows["tags"])))
    assert len(counts) == len(TAGS) and counts.min() > 1_000


def test_questions():
    rows = questions_about_names(300)
    for row in rows:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text


def test_choices():
    rows = choices_of_names(500)
    assert {len(choices) for choices in rows["choices"]} == {4} and set(rows["label"]) == {0, 1, 2, 3}
