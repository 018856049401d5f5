"""Two real processes on the CPU (gloo)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny
from tests.heads import HEADS

SCRIPT = Path(__file__).with_name("distributed_gradients.py")
FAMILIES = {name: head for name, head in HEADS.items() if head.additive}


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def of_two_processes(request, tmp_path_factory):
    """Gradients by family. (`--multi_gpu` is how accelerate starts several processes, also on a CPU: with `--cpu` it
    starts one, whatever `--num_processes` says.)"""
    output = tmp_path_factory.mktemp(request.param) / "gradients.pt"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               str(SCRIPT), request.param, str(output)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    saved = torch.load(output)
    assert saved["processes"] == 2
    return saved["gradients"]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_do_not_depend_on_the_number_of_processes(name, of_two_processes, tmp_path):
    torch.manual_seed(0)
    model = tiny.freeze_batch_norm(FAMILIES[name].build())
    trainer = MaxSupTrainer(model, MaxSupTrainingArguments(str(tmp_path), use_cpu=True))
    _, reference = tiny.gradients(trainer, [FAMILIES[name].batch(torch.Generator().manual_seed(1))])
    assert tiny.relative_error(of_two_processes[name], reference) <= 1e-6
