"""Real processes on the CPU (gloo)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny

SCRIPT = Path(__file__).with_name("distributed_gradients.py")


def launch(processes, *arguments):
    """Gradients of one step over as many processes. (`--multi_gpu` is how accelerate starts several processes, also on a
    CPU: with `--cpu` it starts one, whatever `--num_processes` says.)"""
    several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes),
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               str(SCRIPT), *map(str, arguments)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    saved = torch.load(arguments[1])
    assert saved["processes"] == processes
    return saved["gradients"]


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_gradients_do_not_depend_on_the_number_of_processes(name, tmp_path):
    one = launch(1, name, tmp_path / "one.pt", 8)
    two = launch(2, name, tmp_path / "two.pt", 3, 1, 2, 2)
    assert tiny.relative_error(two, one) <= 1e-6
