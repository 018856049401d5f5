"""The same eight rows, cut in different ways: prints how far the gradients are from those of one batch.

python tests/trainer/normalisation.py     # starts the two processes by accelerate launch itself

Columns: how the rows were cut. Numbers: relative error in float32, ‖g − g₁ₓ₈‖ / ‖g₁ₓ₈‖. Rows: head, and
average_tokens_across_devices; where it is off, each rank divides by its own items and the ranks' gradients are averaged, so
with two processes the reference is that mean.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import PartialState

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny
from tests.heads import HEADS
from tests.launch import two_processes

FAMILIES = {
    "sequence classification": HEADS["sequence classification"],
    "token classification": HEADS["token classification"],
    "causal LM": HEADS["causal lm"],
    "seq2seq (T5)": HEADS["T5"],
    "seq2seq (BART)": HEADS["BART"],
}
CUTS = {"1 x 8": [8], "1 x 2 x accumulation 4": [2, 2, 2, 2], "1 x accumulation 3 (3, 1, 4)": [3, 1, 4]}
TWO = "2 x 2 x accumulation 2"


def gradients(head, folder, batches, average=True, wrap=lambda model: model):
    torch.manual_seed(0)
    args = MaxSupTrainingArguments(folder, use_cpu=True, average_tokens_across_devices=average)
    trainer = MaxSupTrainer(head.build(), args)
    wrapped = wrap(trainer.model)
    samples, num_items = trainer.get_batch_samples(iter(batches), len(batches), args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    for sample in samples:
        trainer.training_step(wrapped, dict(sample), num_items)
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def of_rank(rank):
    """Rank r takes every second micro-batch of 2 rows."""
    return slice(rank, None, 2)


def micro_batches(head, sizes):
    return tiny.cut(head.batch(torch.Generator().manual_seed(1)), sizes)


def one_rank(output):
    """Run by accelerate launch on two processes."""
    MaxSupTrainingArguments(f"{output}.out", use_cpu=True)  # starts the process group, on the CPU
    state = PartialState()
    found = {}
    for name, head in FAMILIES.items():
        for average in (True, False):
            batches = micro_batches(head, [2, 2, 2, 2])[of_rank(state.process_index)]
            wrap = partial(torch.nn.parallel.DistributedDataParallel, find_unused_parameters=True)
            found[name, average] = gradients(head, f"{output}.out", batches, average, wrap)
    if state.is_main_process:
        torch.save({"processes": state.num_processes, "gradients": found}, output)
    state.wait_for_everyone()
    state.destroy_process_group()


def table(output):
    """(head, average_tokens_across_devices) -> cut -> relative error."""
    two_processes(__file__, "rank", output)
    saved = torch.load(output)
    assert saved["processes"] == 2
    errors = {}
    for name, head in FAMILIES.items():
        folder = f"{output}.out"
        whole = gradients(head, folder, micro_batches(head, [8]))
        shares = [gradients(head, folder, micro_batches(head, [2, 2, 2, 2])[of_rank(rank)]) for rank in (0, 1)]
        mean = {key: (shares[0][key] + shares[1][key]) / 2 for key in whole}
        for average, reference in ((True, whole), (False, mean)):
            row = {
                cut: tiny.relative_error(gradients(head, folder, micro_batches(head, sizes), average), whole)
                for cut, sizes in CUTS.items()
            }
            errors[name, average] = {**row, TWO: tiny.relative_error(saved["gradients"][name, average], reference)}
        errors[name, False]["(off, to 1 x 8)"] = tiny.relative_error(saved["gradients"][name, False], whole)
    return errors


def show(errors):
    cuts = [*CUTS, TWO]
    print(f"{'head':26}{'average tokens':16}" + "".join(f"{cut:>30}" for cut in cuts))
    for (name, average), row in errors.items():
        note = "" if average else f"   off: {row['(off, to 1 x 8)']:.1e} from 1 x 8"
        print(f"{name:26}{'on' if average else 'off':16}" + "".join(f"{row[cut]:30.1e}" for cut in cuts) + note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        one_rank(sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            show(table(f"{folder}/gradients.pt"))
