"""Two real processes on the CPU (gloo)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny

SCRIPT = Path(__file__).with_name("distributed_gradients.py")


def launch(processes, *arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes),
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               "--num_cpu_threads_per_process", "1", str(SCRIPT), *map(str, arguments)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_gradients_do_not_depend_on_the_number_of_processes(name, tmp_path):
    launch(1, name, tmp_path / "one.pt", 8)
    launch(2, name, tmp_path / "two.pt", 3, 1, 2, 2)
    one, two = (torch.load(tmp_path / f"{file}.pt") for file in ("one", "two"))
    assert tiny.relative_error(two, one) <= 1e-6
