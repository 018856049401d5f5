"""Train, push, and load in another process, with the real client over HTTP."""

import subprocess
import sys

import pytest
import torch

LOAD = """
import sys, torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
pixels = torch.load(sys.argv[2])
torch.save(model(pixels).logits, sys.argv[3])
"""


def run(environment, *command, cwd):
    return subprocess.run([sys.executable, *map(str, command)], env=environment, cwd=cwd, capture_output=True, text=True,
                          timeout=300)  # fmt: skip


@pytest.mark.parametrize("strategy", ["end", "all_checkpoints"])
def test_what_is_pushed_loads_with_equal_logits(strategy, hub, hub_environment, tmp_path, pytestconfig):
    root = pytestconfig.rootpath
    flags = ["--hub_model_id", '"me/tiny"', "--hub_strategy", f'"{strategy}"']
    trained = run(hub_environment, "-m", "tests.hub.train", tmp_path / "out", *flags, cwd=root)
    assert trained.returncode == 0, trained.stderr[-3000:]
    files = hub.repos["me/tiny"].files("main")
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)
    assert b"with the loss `maxsup`" in files["README.md"]

    from tests import tiny

    torch.save(tiny.batch("vit", size=16)["pixel_values"][:1], tmp_path / "pixels.pt")
    loaded = run(hub_environment, "-c", LOAD, "me/tiny", tmp_path / "pixels.pt", tmp_path / "logits.pt", cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert torch.equal(torch.load(tmp_path / "logits.pt"), torch.load(tmp_path / "out" / "logits.pt"))
