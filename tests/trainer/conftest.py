"""A finished training with its checkpoints."""

import shutil
from pathlib import Path

import pytest

from tests.trainer.trainings import saving


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a training, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    saving(folder).train()
    return folder


@pytest.fixture
def output(finished, tmp_path):
    """The same, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "out"))
