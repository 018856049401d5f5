"""Two processes × accumulation 2 against one batch on one process: DDP, fully_shard, DeepSpeed ZeRO-2 and ZeRO-3."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import HANGS, warm
from tests.launch import two_processes
from tests.trainer.processes_cut import CASES

SCRIPT = Path(__file__).with_name("processes_cut.py")
NO_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs DeepSpeed: DS_BUILD_OPS=0 pip install -c constraints.txt -e '.[test,deepspeed]'",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    output = tmp_path_factory.mktemp("one") / "changes.pt"
    # In a process of its own too: the arguments of a training with DeepSpeed leave their mark on a process.
    assert warm.run(SCRIPT, "one", output, cwd=output.parent).returncode == 0
    return torch.load(output)["changes"]


def with_deepspeed(way, output):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", str(SCRIPT), way, str(output)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
    result = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize(
    "way", ["ddp", "fully_shard", pytest.param("zero2", marks=NO_DEEPSPEED), pytest.param("zero3", marks=NO_DEEPSPEED)]
)
def test_two_processes_make_the_step_of_one(way, whole, tmp_path):
    output = tmp_path / "changes.pt"
    with_deepspeed(way, output) if way.startswith("zero") else two_processes(SCRIPT, way, output)
    saved = torch.load(output)
    assert saved["processes"] == 2 and whole.keys() == saved["changes"].keys() == CASES.keys()
    errors = {name: error(change, whole[name]) for name, change in saved["changes"].items()}
    assert max(errors.values()) <= 1e-6, errors


def error(change, expected):
    difference = sum((change[key] - value).double().square().sum() for key, value in expected.items())
    return (difference / sum(value.double().square().sum() for value in expected.values())).sqrt().item()
