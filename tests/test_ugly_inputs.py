"""What users bring by mistake: each gets status 2 and one line that says what is wrong, before anything is written."""

import os
import re
import shlex
from pathlib import Path

import datasets
import pytest

from maxsup_hf import cli
from tests.scripts.conftest import NEEDS_TORCHVISION, NO_SEGFORMER
from tests.ugly_world import make

LINES = Path(__file__).with_name("ugly_inputs.txt").read_text(encoding="utf-8").splitlines()
INPUTS = [(LINES[i - 1], line.strip()) for i, line in enumerate(LINES) if line.startswith("    ")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    before = os.getcwd()
    os.chdir(folder)
    make()
    os.chdir(before)
    return folder


@pytest.fixture
def inside(world, tmp_path_factory, monkeypatch):
    """In the world, with a cache beside it."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")
    return world


def entries(folder):
    return sorted(os.path.join(parent, name) for parent, folders, files in os.walk(folder) for name in [*folders, *files])


@pytest.mark.parametrize(("command", "line"), INPUTS, ids=[command for command, _ in INPUTS])
def test_one_line_and_nothing_written(command, line, inside, capsys):
    words = shlex.split(command)
    if "semantic-segmentation" in words and NO_SEGFORMER:
        pytest.skip(NEEDS_TORCHVISION)
    if "sft" in words:
        pytest.importorskip("trl")
    if words[:1] in (["train"], ["compare"]) and len(words) > 2:
        words[2:2] = ["--dry_run", "true"] if words[0] == "train" else []
        words += [] if "--output_dir" in words else ["--output_dir", "out"]
    before = entries(inside)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    said = capsys.readouterr().err.splitlines()
    errors = [each for each in said if re.match(r"(maxsup-hf[a-z -]*: )?error: ", each)]
    assert end.value.code == 2
    assert errors == said[-1:] and "Traceback" not in "\n".join(said)
    assert re.search(line, errors[0]), errors[0]
    assert entries(inside) == before
