"""One run of a comparison, in its own process: the task's script, with a record of what must be the same for all runs.

`python -m maxsup_hf.comparison.one_run TASK SHARE flags…`, alone or through `accelerate launch -m`. If there is no test
data, SHARE of the validation data becomes test data.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from maxsup_hf.analysis.measure import measure
from maxsup_hf.analysis.store import model_fingerprint
from maxsup_hf.comparison.parent import end_with_parent, noting_bad_input
from maxsup_hf.comparison.plan import DETAILS, PROGRESS
from maxsup_hf.data.columns import read_column
from maxsup_hf.data.splits import stratified_indices
from maxsup_hf.output.files import write_json
from maxsup_hf.scripts.common import run
from maxsup_hf.trainer.callbacks import FeatureGeometryCallback, WrongRowsCallback
from maxsup_hf.trainer.features import Classifier, FeatureRows, extract, find_classifier

COMPLETE_BATCHES = 100  # of which all inputs are in the fingerprint


class Batches:
    """Fingerprint of the batches of a training: the labels of all batches, and all inputs of the first ones.

    With several processes, it covers the main process's share.
    """

    def __init__(self, trainer: Any):
        self.count = 0
        self._digest = hashlib.blake2b(digest_size=16)
        inner = trainer.get_batch_samples

        def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
            samples, num_items = inner(*args, **kwargs)
            for sample in samples:
                self.add(sample)
            return samples, num_items

        trainer.get_batch_samples = get_batch_samples

    def add(self, batch: dict[str, Any]) -> None:
        self.count += 1
        for name, value in sorted(batch.items()):
            if isinstance(value, Tensor) and (self.count <= COMPLETE_BATCHES or "label" in name):
                self._digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                self._digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def fingerprint(self) -> str:
        return self._digest.hexdigest()


class Progress(TrainerCallback):
    """Writes the share of the steps that are done, for the progress bar of the comparison."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.max_steps > 0:
            (Path(args.output_dir) / PROGRESS).write_text(f"{state.global_step / state.max_steps:.4f}")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    task, share, *flags = argv
    end_with_parent()
    script = import_module(f"maxsup_hf.scripts.{task.replace('-', '_')}")
    sys.argv = [str(script.__file__), *flags]  # the run records these words as its command

    def prepare(given: Sequence[str] | None) -> run.Job:
        job = script.prepare(given)
        _hold_out(job, float(share))
        return job

    with noting_bad_input():
        run.main(prepare, flags, act=_watched)


def _hold_out(job: run.Job, share: float) -> None:
    """Without test data, split some off the validation data: always the same rows, in proportion from every class."""
    data = job.trainer.eval_dataset
    if job.test_dataset is not None or not share or data is None or len(data) < 2:
        return
    strata: np.ndarray = np.zeros(len(data), int)
    if "labels" in data.column_names:
        labels = read_column(data, "labels").to_pylist()
        if all(isinstance(label, int) for label in labels):
            strata = np.array(labels)
    test = stratified_indices(strata, min(max(1, round(len(data) * share)), len(data) - 1))
    job.test_dataset = data.select(test)
    job.trainer.eval_dataset = data.select(np.setdiff1d(np.arange(len(data)), test))


def _watched(job: run.Job) -> None:
    trainer = job.trainer
    classifier, reason = _classifier(trainer) if job.classifies_rows else (None, None)
    if classifier is not None:
        trainer.add_callback(FeatureGeometryCallback(trainer))
    trainer.add_callback(Progress())
    trainer.add_callback(wrong_rows := WrongRowsCallback(trainer))
    details: dict[str, Any] = {"initial_weights": model_fingerprint(trainer.model)}
    batches = Batches(trainer)
    run.run(job)
    if trainer.preempted:
        return
    split, dataset = ("eval", trainer.eval_dataset) if job.test_dataset is None else ("test", job.test_dataset)
    details |= {
        "batches": batches.fingerprint(),
        "batch_count": batches.count,
        "training_rows": wrong_rows.counts,
        "processes": trainer.args.world_size,
        "split": split,
        "classes": list((getattr(trainer.model.config, "id2label", None) or {}).values()) if job.classifies_rows else [],
        "measured": _measured(trainer, dataset, classifier) if classifier is not None else None,
        "not_measured": reason,
        "history": trainer.state.log_history,
    }
    if trainer.is_world_process_zero():
        write_json(Path(trainer.args.output_dir) / DETAILS, details)


def _classifier(trainer: Any) -> tuple[Classifier | None, str | None]:
    """The layer whose features are measured, or the reason why there is none."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None, "features are not measured with sharded weights"
    with torch.random.fork_rng():  # starting a data loader draws from the generator, which must not change the training
        batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    try:
        return find_classifier(trainer.model.to(trainer.args.device), batch), None
    except ValueError as error:
        return None, str(error)


def _measured(trainer: Any, dataset: Any, classifier: Classifier) -> dict[str, Any]:
    """Geometry and reliability curve on the evaluated data. All processes must call this."""

    def rows() -> Iterator[FeatureRows]:
        batches = map(trainer._prepare_inputs, trainer.get_eval_dataloader(dataset))
        for found in extract(trainer.model, batches, classifier):
            given = tuple(x.to(trainer.args.device) for x in found)
            yield FeatureRows(*(x.cpu() for x in trainer.accelerator.gather_for_metrics(given)))

    found = measure(rows, classifier.weight, missing="skip")
    return {"geometry": found.geometry, "curve": found.curve._asdict()}


if __name__ == "__main__":
    main(sys.argv[1:])
