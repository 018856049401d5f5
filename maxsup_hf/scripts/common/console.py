"""What a run prints while it trains: a line for each log and each evaluation, and progress bars on a terminal."""

from __future__ import annotations

from typing import Any

import datasets
import huggingface_hub.utils
import transformers
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from maxsup_hf.trainer.callbacks import evaluated_split

# Of the metrics of an evaluation, those that are printed; the files have all of them.
PRINTED = ("loss", "accuracy", "mean_token_accuracy", "perplexity", "exact_match", "f1", "chrf", "bleu", "mean_iou")


def disable_library_bars() -> None:
    """Switch off the progress bars of datasets, transformers and huggingface_hub, in this process."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()


def print_lines(trainer: Any) -> None:
    """Let a Trainer print lines in place of dicts."""
    for stock in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(stock)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(_Bars())
    trainer.add_callback(_Lines())


class _Bars(ProgressCallback):
    """The bars of the Trainer, without its dicts."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Left to `_Lines`."""


class _Lines(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            tqdm.write(describe_log(logs, state, args.metric_for_best_model))  # puts the line above the bars


def describe_log(logs: dict[str, Any], state: Any, chosen: str | None = None) -> str:
    """A log of the Trainer in one line.

    Args:
        logs: metric -> value.
        state: of the Trainer.
        chosen: `metric_for_best_model`, which is always printed.
    """
    values = {name: value for name, value in logs.items() if name != "epoch"}
    if "train_runtime" in values:
        return f"trained in {values['train_runtime']:.0f} s, mean loss {values['train_loss']:.4g}"
    if "loss" in values:
        values = {name: values[name] for name in ("loss", "learning_rate") if name in values}
    split = evaluated_split(values)
    if split is not None:
        values = {name.removeprefix(f"{split}_"): value for name, value in values.items()}
        printed = (*PRINTED, (chosen or "").removeprefix("eval_"))
        values = {name: values[name] for name in dict.fromkeys(printed) if name in values}
    line = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, (int, float)))
    if split is not None:
        line = f"{split} {line}"
    if not state.max_steps:  # nothing is trained
        return line
    return f"step {state.global_step} of {state.max_steps}, epoch {state.epoch:.2f}: {line}"
