"""Files are complete or not there, and JSON is valid."""

import json
from enum import Enum

import numpy as np
import pytest
import torch

from maxsup_hf.output.files import plain, replacing, write_json


class Kind(Enum):
    A = "a"


def test_json_has_no_nan_and_no_foreign_types(tmp_path):
    found = {
        "accuracy": float("nan"),
        1: (np.float32(0.5), torch.tensor([1, 2])),
        "kind": Kind.A,
        "folder": tmp_path,
        "ü": True,
    }
    write_json(tmp_path / "found.json", found)
    text = (tmp_path / "found.json").read_text(encoding="utf-8")
    expected = {"accuracy": None, "1": [0.5, [1, 2]], "kind": "a", "folder": str(tmp_path), "ü": True}
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == expected
    assert "ü" in text and text.endswith("}\n")


@pytest.mark.parametrize("value", [np.array([1.0, np.inf]), [1.0, float("inf")], torch.tensor([1.0, torch.inf])])
def test_infinities_in_arrays_are_null_too(value):
    assert plain(value) == [1.0, None]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["model.txt"]
