"""Built-in data sets: real data from installed packages, so that image and text classification run without a download."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value

# All of them in Latin script, so that the alphabet alone does not give the language away.
LANGUAGES = (
    "cs", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "it", "lt", "lv", "nb", "nl", "pl", "pt", "ro", "sk", "sv",
)  # fmt: skip


def digits() -> Dataset:
    """Handwritten digits of the UCI Machine Learning Repository, from scikit-learn: 1,797 grey images, 8x8.

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
    """Names of territories, languages and currencies in 20 languages, to be classified by language.

    About 14,700 names of Unicode CLDR, depending on the version of Babel, which provides them. Names that several of the
    languages share are left out.
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
