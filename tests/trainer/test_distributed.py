"""Two real processes on the CPU (gloo)."""

from pathlib import Path

import pytest
import torch

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny
from tests.heads import HEADS
from tests.launch import two_processes
from tests.trainer import normalisation

SCRIPT = Path(__file__).with_name("distributed_gradients.py")
FAMILIES = {name: head for name, head in HEADS.items() if head.additive}


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def of_two_processes(request, tmp_path_factory):
    """Gradients by family."""
    output = tmp_path_factory.mktemp(request.param) / "gradients.pt"
    two_processes(SCRIPT, request.param, output)
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


def test_the_table_of_cuts(tmp_path, capsys):
    errors = normalisation.table(tmp_path / "gradients.pt")
    with capsys.disabled():
        print()
        normalisation.show(errors)
    for (name, average), row in errors.items():
        assert all(row[cut] <= 1e-6 for cut in (*normalisation.CUTS, normalisation.TWO)), name
        if not average and name != "sequence classification":  # ranks hold different numbers of tokens
            assert row["(off, to 1 x 8)"] > 1e-3
