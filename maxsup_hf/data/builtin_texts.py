"""Built-in data sets: English text and translations from Python and its packages."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from datasets import Dataset


def python_documentation() -> Dataset:
    """Chapters of the Python language reference in English, as `help("assignment")`, `help("while")` and so on print them.

    About 80 texts with 370,000 characters in all, in random order. Chapters repeat each other: each paragraph is kept only
    once, in the longest chapter that has it, so that held-out text is unseen. Column: `text`.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    texts = []
    for chapter in sorted(topics.values(), key=lambda text: (-len(text), text)):
        paragraphs = [paragraph for paragraph in chapter.split("\n\n") if paragraph.strip()]
        fresh = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen]
        texts.append("\n\n".join(fresh))
        seen.update(fresh)
    kept = [text for text in texts if text]
    return Dataset.from_dict({"text": [kept[i] for i in np.random.default_rng(0).permutation(len(kept))]})


def translated_phrases() -> Dataset:
    """Names, dates and amounts in English and German (Unicode CLDR, from Babel).

    The names of territories, languages, scripts and currencies, and 1,500 dates, 1,500 sums of money ("8.50 Swiss francs")
    and 1,500 quantities ("12 kilometers") drawn at random; about 5,800 pairs, depending on Babel's version.
    Columns: `source` (English), `target` (German).
    """
    from babel import Locale

    english, german = Locale("en"), Locale("de")
    tables = ("territories", "languages", "scripts", "currencies", "unit_display_names")
    codes = {table: sorted(getattr(english, table).keys() & getattr(german, table).keys()) for table in tables}
    # A dict keeps one translation of each source: with two, a model could learn neither.
    pairs = dict(zip(_phrases(english, codes), _phrases(german, codes), strict=True))
    return Dataset.from_dict({"source": list(pairs), "target": list(pairs.values())})


def _phrases(locale: Any, codes: dict[str, list[str]]) -> list[str]:
    """Phrases in one language; every locale gets the same ones in the same order."""
    from babel.dates import format_date
    from babel.numbers import format_currency
    from babel.units import format_unit

    tables = ("territories", "languages", "scripts", "currencies")
    phrases = [getattr(locale, table)[code] for table in tables for code in codes[table]]
    rng = np.random.default_rng(0)
    for _ in range(1_500):
        date = datetime.date(1900, 1, 1) + datetime.timedelta(days=int(rng.integers(50_000)))
        amount = int(rng.integers(1, 2_000)) / 4
        currency, unit = (codes[table][rng.integers(len(codes[table]))] for table in ("currencies", "unit_display_names"))
        phrases += [
            format_date(date, "full", locale),
            format_currency(amount, currency, locale=locale, format_type="name"),
            format_unit(int(amount) + 1, unit, locale=locale),
        ]
    return phrases
