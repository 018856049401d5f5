"""The help of a training script on one screen."""

from __future__ import annotations

import argparse
import re
import shutil

# Training arguments of transformers that most runs set; `--help_all` lists the others.
TRAINING = (
    "output_dir", "do_predict", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "lr_scheduler_type", "seed", "bf16", "metric_for_best_model", "resume_from_checkpoint",
    "report_to", "push_to_hub",
)  # fmt: skip
# Flags of the scripts that few runs set; `--help_all` lists them too.
RARE = (
    "model_revision", "trust_remote_code", "dataset_config_name", "skip_image_check", "mixup_prob", "mixup_switch_prob",
    "mixup_mode",
)  # fmt: skip
LOSS = ("loss", "loss_kwargs", "class_weights", "fused_linear_loss")


def short_help(parser: argparse.ArgumentParser, own: list[str]) -> str:
    """A line for each flag of the loss, the model and the data, and for the common training arguments.

    Args:
        parser: of the script, with the defaults of this run.
        own: the script's own flags, in their order.
    """
    actions = {action.dest: action for action in parser._actions}
    groups = {
        "loss": LOSS,
        "model and data": [name for name in own if name in actions and name not in RARE],
        "training": TRAINING,
    }
    lines = [f"usage: {parser.prog} [flags]"]
    for title, names in groups.items():
        lines += [f"{title}:", *(_line(actions[name]) for name in names if name in actions)]
    width = shutil.get_terminal_size((120, 24)).columns
    lines.append("--help_all lists every flag in full, with the other training arguments of transformers.")
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def _line(action: argparse.Action) -> str:
    """The flag, its default, and the first sentence about it."""
    text = re.sub(r"\s+", " ", (action.help or "").replace("%(default)s", "")).strip()
    text = re.split(r"(?<=[a-z\)])[.;] ", text)[0].rstrip(".")
    default = "" if action.default in (None, False, "", [], argparse.SUPPRESS) else f" [{action.default}]"
    return f"  --{action.dest:30}{text}{default}"
