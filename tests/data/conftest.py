"""Each test runs in its own folder, as in the tests of the scripts; small tables."""

import datasets

from tests.scripts.conftest import own_folder

__all__ = ["own_folder"]


def table(**columns):
    return datasets.Dataset.from_dict(columns)
