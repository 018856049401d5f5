"""Chats for the experiment on SFT, from three data sets: sentiment (two options), topics (four options), translations.

A row is one question and one answer. The answer of a multiple-choice question is the letter of an option.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import load_dataset

SENTIMENT = ("negative", "positive")
TOPICS = {"comp": "computers", "rec": "sports and vehicles", "sci": "science", "talk": "politics and religion"}
CHARACTERS = 160  # of a text about a topic


class Question(NamedTuple):
    """A multiple-choice question.

    Attributes:
        prompt: with its options and their letters.
        options: the letters.
        label: index of the right one.
    """

    prompt: str
    options: tuple[str, ...]
    label: int


def questions(data: Path, split: str, count: int) -> list[Question]:
    """`count` questions about sentiments and as many about topics.

    Args:
        split: `"train"` or `"test"`.
    """
    sentences = _rows(data / "sst2_sentences" / f"{split}.parquet")
    found = [_question("Sentiment", SENTIMENT, text, label) for text, label in _first(sentences, count)]
    news = load_dataset("parquet", data_files=str(data / "newsgroups20" / f"{split}.parquet"), split="train")
    groups = [name.partition(".")[0] for name in news.features["label"].names]
    kinds = list(TOPICS)
    of_topics = ((text[:CHARACTERS], kinds.index(groups[y])) for text, y in _pairs(news) if groups[y] in TOPICS)
    return found + [_question("Topic", tuple(TOPICS.values()), text, label) for text, label in _first(of_topics, count)]


def translations(data: Path, split: str, count: int) -> list[tuple[str, str]]:
    """`count` pairs of an English sentence as a prompt, and its German translation."""
    rows = load_dataset("parquet", data_files=str(data / "multi30k" / f"{split}.parquet"), split=f"train[:{count}]")
    return [(f"In German: {row['en']}", row["de"]) for row in rows]


def make(data: Path, folder: Path) -> None:
    """Write train.jsonl and test.jsonl, in the column `messages`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 5000), ("test", 500)):
        pairs = [(q.prompt, q.options[q.label]) for q in questions(data, split, count)]
        pairs += translations(data, split, count)
        order = np.random.default_rng(0).permutation(len(pairs))
        lines = [json.dumps({"messages": messages(*pairs[i])}, ensure_ascii=False) for i in order]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def messages(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _question(what: str, names: tuple[str, ...], text: str, label: int) -> Question:
    letters = "ABCD"[: len(names)]
    listed = " ".join(f"{letter}) {name}" for letter, name in zip(letters, names, strict=True))
    return Question(f"{what}? {listed}\n{' '.join(text.split())}", tuple(letters), label)


def _rows(path: Path) -> Iterator[tuple[str, int]]:
    return _pairs(load_dataset("parquet", data_files=str(path), split="train"))


def _pairs(rows: object) -> Iterator[tuple[str, int]]:
    return zip(rows["text"], rows["label"], strict=True)  # type: ignore[index]


def _first(pairs: Iterator[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    return [pair for pair, _ in zip(pairs, range(count), strict=False)]
