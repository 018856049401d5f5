"""What several tests of the Trainers share: tiny trainings, heads, and what they log."""

import torch

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny


def arguments(tmp_path, **kwargs):
    """Of a training of two steps in a fixed order."""
    defaults = dict(
        use_cpu=True, disable_tqdm=True, logging_steps=1, save_strategy="no", per_device_train_batch_size=4, max_steps=2,
        train_sampling_strategy="sequential", max_grad_norm=0.0, report_to=[],
    )  # fmt: skip
    return MaxSupTrainingArguments(str(tmp_path), **defaults | kwargs)


def logs(trainer):
    """The logs of the training loss."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def outputs_of(model, inputs):
    """Outputs and labels, as a `compute_loss` of the user's own gets them."""
    labels = inputs.pop("labels")
    return model(**inputs), labels


def build(head):
    """A model of a family of heads, and a batch for it."""
    torch.manual_seed(0)
    return tiny.freeze_batch_norm(head.build()), head.batch(torch.Generator().manual_seed(1))


def ours(model, tmp_path, loss):
    return MaxSupTrainer(model, MaxSupTrainingArguments(str(tmp_path), use_cpu=True, loss=loss))


def saving(folder, callbacks=(), **kwargs):
    """A Trainer of six steps that saves every second one."""
    torch.manual_seed(0)
    kwargs = {"max_steps": 6, "save_steps": 2, **kwargs}
    args = MaxSupTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **kwargs)
    rows = tiny.rows(tiny.batch("vit", size=16))
    return MaxSupTrainer(tiny.vit(), args, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
