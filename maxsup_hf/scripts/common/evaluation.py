"""The evaluations at the end of a run, and their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from maxsup_hf.metrics.class_scores import ClassScores, write_per_class
from maxsup_hf.output.files import replacing

SHOWN_CLASSES = 5


class LastEvaluation(TrainerCallback):
    """Remembers the metrics of the last evaluation during training, so that the same model is not evaluated twice."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._step = -1
        self._metrics: dict[str, float] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._step, self._metrics = state.global_step, metrics

    def of_this_model(self) -> Mapping[str, float] | None:
        """The metrics, if the weights are those that were evaluated; else `None`.

        They are not if training continued after the evaluation, or if a better checkpoint was loaded at the end. And during
        training `fp16_full_eval` and `bf16_full_eval` do not convert the model, so that an evaluation after it differs.
        """
        args, state = self.trainer.args, self.trainer.state
        loads_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        is_other = self._step != state.global_step or (loads_best and state.best_global_step != state.global_step)
        return None if is_other or args.fp16_full_eval or args.bf16_full_eval else self._metrics


def evaluate(trainer: Any, prefix: str, dataset: Any, known: Mapping[str, float] | None = None) -> Sequence[ClassScores]:
    """Evaluate a data set, and write `PREFIX_results.json`. Returns the scores of each class; none if they are not measured.

    Args:
        prefix: `eval` or `test`.
        known: its metrics, if the last evaluation was that of this model and data set.
    """
    metrics = trainer.evaluate(dataset, metric_key_prefix=prefix) if known is None else known
    save_metrics(trainer, prefix, metrics, dataset)
    return getattr(trainer.compute_metrics, "scores", [])


def save_metrics(trainer: Any, prefix: str, metrics: Mapping[str, float], dataset: Any) -> None:
    """Write `PREFIX_results.json`, and add the metrics to `all_results.json`. Unlike those of `Trainer.save_metrics`, the
    files are complete even if the run is killed."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    found = {**metrics, f"{prefix}_samples": len(dataset)}
    _write_results(folder / f"{prefix}_results.json", found)
    path, before = folder / "all_results.json", {}
    if path.is_file():
        with suppress(ValueError):  # an older version was killed while it wrote the file
            before = json.loads(path.read_text(encoding="utf-8"))
    _write_results(path, before | found)


def _write_results(path: Path, values: Mapping[str, float]) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(values, indent=4, sort_keys=True), encoding="utf-8")


def report_classes(trainer: Any, split: str, scores: dict[str, Sequence[ClassScores]]) -> None:
    """Write `per_class.csv`, and print the classes of a split that are predicted worst.

    Args:
        split: the one that was evaluated last.
        scores: of the classes in each split.
    """
    if not scores[split] or not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir) / "per_class.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_per_class(path, "split", scores.items())
    worst = sorted(scores[split], key=lambda each: each.f1)[:SHOWN_CLASSES]
    width = max(len(each.name) for each in worst)
    print(f"lowest F1 of the {len(scores[split])} classes in the {split} data ({path}):")
    for each in worst:
        print(
            f"  {each.name:{width}}  F1 {each.f1:.3f}  precision {each.precision:.3f}  recall {each.recall:.3f}  "
            f"support {each.support:,}"
        )
