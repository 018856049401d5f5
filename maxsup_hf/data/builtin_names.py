"""Built-in data sets: tagging, questions and choices about names in 20 languages (Unicode CLDR, from Babel)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from maxsup_hf.data.builtin import LANGUAGES

KINDS = ("territory", "language", "currency")
TAGS = ("O", *(f"{prefix}-{kind}" for kind in KINDS for prefix in "BI"))
WORD = re.compile(r"\w+|[^\w\s]")


def tagged_names() -> Dataset:
    """Lists of names as each language writes them ("Schweden, Zulu und Euro"), where every name is tagged with its kind.

    About 6,900 lists of 2 to 5 names. Every name of a language is in one list only, so that held-out names are unseen.
    Columns: `tokens`, `tags` (BIO).
    """
    from babel.lists import format_list

    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"tokens": [], "tags": []}
    for language in LANGUAGES:
        pairs = _names(language)
        order = rng.permutation(len(pairs))
        while len(order) > 1:
            chosen, order = np.split(order, [rng.integers(2, 6)])
            pattern = format_list([f"{{{i}}}" for i in chosen], locale=language)
            tokens: list[str] = []
            tags: list[str] = []
            for i, part in enumerate(re.split(r"\{(\d+)\}", pattern)):  # text between names and names alternate
                name, kind = pairs[int(part)] if i % 2 else (part, "")
                words = WORD.findall(name)
                tokens += words
                tags += _bio(kind, len(words))
            rows["tokens"].append(tokens)
            rows["tags"].append(tags)
    return Dataset.from_dict(rows, Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=list(TAGS)))}))


def _bio(kind: str, count: int) -> list[str]:
    """BIO tags of the words of a name; without a kind, of words outside any name."""
    if not kind:
        return ["O"] * count
    return [f"{'I' if i else 'B'}-{kind}" for i in range(count)]


def questions_about_names(count: int = 6_000) -> Dataset:
    """Which name in a list is that of a territory, a language or a currency? Exactly one is.

    Columns: `question`, `context` (a list of 3 to 5 names as its language writes it), `answers` (as in SQuAD).
    """
    from babel.lists import format_list

    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"question": [], "context": [], "answers": []}
    for language, kind, answer, others in _puzzles(rng, count, fewest=2, most=4):
        # A marker in place of the answer tells where it begins: its text may also be part of another name.
        listed = [*others, "\0"]
        context = format_list([listed[i] for i in rng.permutation(len(listed))], locale=language)
        rows["question"].append(f"Which is a {kind}?")
        rows["context"].append(context.replace("\0", answer))
        rows["answers"].append({"text": [answer], "answer_start": [context.index("\0")]})
    return Dataset.from_dict(rows)


def choices_of_names(count: int = 4_000) -> Dataset:
    """Which of 4 names in one language is that of a territory, a language or a currency? Exactly one is.

    Columns: `question`, `choices` (4 names), `label` (0 to 3).
    """
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"question": [], "choices": [], "label": []}
    for _, kind, answer, others in _puzzles(rng, count, fewest=3, most=3):
        label = int(rng.integers(4))
        rows["question"].append(f"Which is a {kind}?")
        rows["choices"].append([*others[:label], answer, *others[label:]])
        rows["label"].append(label)
    return Dataset.from_dict(rows)


def _puzzles(rng: np.random.Generator, count: int, fewest: int, most: int) -> Iterator[tuple[str, str, str, list[str]]]:
    """Draw a language, a kind, a name of this kind, and names of the other kinds."""
    names = {language: _by_kind(language) for language in LANGUAGES}
    for _ in range(count):
        language, kind = LANGUAGES[rng.integers(len(LANGUAGES))], int(rng.integers(3))
        other_kinds = [(kind + int(rng.integers(1, 3))) % 3 for _ in range(rng.integers(fewest, most + 1))]
        answer, *others = (_pick(rng, names[language][KINDS[k]]) for k in (kind, *other_kinds))
        yield language, KINDS[kind], answer, others


def _names(language: str) -> list[tuple[str, str]]:
    """Pairs of a name and its kind, sorted. Names of several kinds are left out."""
    from babel import Locale

    locale = Locale(language)
    tables = zip(KINDS, (locale.territories, locale.languages, locale.currencies), strict=True)
    kinds_of: dict[str, set[str]] = {}
    for kind, table in tables:
        for name in table.values():
            kinds_of.setdefault(name, set()).add(kind)
    return sorted((name, *kinds) for name, kinds in kinds_of.items() if len(kinds) == 1)  # type: ignore[misc]


def _by_kind(language: str) -> dict[str, list[str]]:
    return {kind: [name for name, its_kind in _names(language) if its_kind == kind] for kind in KINDS}


def _pick(rng: np.random.Generator, names: list[str]) -> str:
    return names[rng.integers(len(names))]
