"""Train, push, and load in another process, with the real client over HTTP."""

import re
from pathlib import Path

import pytest
import torch

from tests import tiny, warm
from tests.hub.xet import XetStore

TRAIN = Path(__file__).with_name("train.py")

LOAD = """
import sys, torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
pixels = torch.load(sys.argv[2])
torch.save(model(pixels).logits, sys.argv[3])
"""


@pytest.mark.parametrize(("strategy", "transfer"), [("end", "lfs"), ("all_checkpoints", "lfs"), ("end", "xet")])
def test_what_is_pushed_loads_with_equal_logits(strategy, transfer, hub, hub_environment, tmp_path):
    if transfer == "xet":
        pytest.importorskip("hf_xet", reason="Xet needs hf_xet, which huggingface_hub installs on x86_64 and arm64 only")
        hub.xet = XetStore(tmp_path / "xet-store")
        hub_environment["HF_HUB_DISABLE_XET"] = "0"
    flags = ["--hub_model_id", '"me/tiny"', "--hub_strategy", f'"{strategy}"']
    trained = warm.run(TRAIN, tmp_path / "out", *flags, cwd=tmp_path, env=hub_environment)
    assert trained.returncode == 0, trained.stderr[-3000:]
    files = hub.repos["me/tiny"].files("main")
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)
    assert b"with the loss `maxsup`" in files["README.md"]

    torch.save(tiny.batch("vit", size=16)["pixel_values"][:1], tmp_path / "pixels.pt")
    words = ["me/tiny", tmp_path / "pixels.pt", tmp_path / "logits.pt"]
    loaded = warm.run("-c", LOAD, *words, cwd=tmp_path, env=hub_environment)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    # Two processes may choose different kernels, depending on how their memory is aligned, so the last bits may differ.
    torch.testing.assert_close(
        torch.load(tmp_path / "logits.pt"), torch.load(tmp_path / "out" / "logits.pt"), atol=1e-6, rtol=0
    )
    by_lfs = [request for request in hub.requests if request.startswith("PUT /lfs/")]
    by_xet = [request for request in hub.requests if re.search("/xet-(read|write)-token/", request)]
    assert (bool(by_lfs), bool(by_xet)) == (transfer == "lfs", transfer == "xet")
    if transfer == "xet":  # the model was also loaded from the store
        assert not [request for request in hub.requests if re.match("GET .*/resolve/.*model.safetensors", request)]
