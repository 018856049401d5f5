"""As the tests of the scripts: a folder of its own for each test."""

from tests.scripts.conftest import own_folder

__all__ = ["own_folder"]
