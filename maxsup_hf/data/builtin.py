"""Real data sets that come inside well-kept packages, so that every task runs without a download."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value

# Latin script throughout: the alphabet alone gives too few of them away.
LANGUAGES = (
    "cs", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "it", "lt", "lv", "nb", "nl", "pl", "pt", "ro", "sk", "sv",
)  # fmt: skip


def digits() -> Dataset:
    """Handwritten digits of the UCI machine learning repository, by way of scikit-learn: 1,797 grey images, 8x8.

    Columns: `image`, `label` (0 to 9).
    """
    from PIL.Image import fromarray
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    rows = {"image": [fromarray(image) for image in pixels], "label": data.target}
    names = [str(name) for name in data.target_names]
    return Dataset.from_dict(rows, Features({"image": Image(), "label": ClassLabel(names=names)}))


def names_in_languages() -> Dataset:
    """Which of 20 languages is this the name of a territory, language or currency in? From Unicode's CLDR, by way of Babel.

    About 14,700 names, fewer or more with Babel's version; a name that several of the languages share is left out.
    Columns: `text`, `label` (language code).
    """
    from babel import Locale

    languages_of: dict[str, set[str]] = {}
    for language in LANGUAGES:
        locale = Locale(language)
        for table in (locale.territories, locale.languages, locale.currencies):
            for name in table.values():
                languages_of.setdefault(name, set()).add(language)
    rows = sorted((name, *found) for name, found in languages_of.items() if len(found) == 1)
    texts, labels = zip(*rows, strict=True)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LANGUAGES))})
    return Dataset.from_dict({"text": texts, "label": labels}, features)
