"""Support matrix: every head of the installed transformers, trained for one step with two losses.

    python -m tests.support [--only REGEX] [--jobs 2]      # about ten minutes on 2 cores

Writes tests/support/matrix.json (class -> outcome) and prints the counts. Outcomes:

equal         trains with maxsup, and with cross_entropy its loss and gradients are the model's own
refused       our error, before anything is trained
no batch      the model was built, but its own forward does not take the generic batch, or returns no loss
not built     no tiny model could be made from the config

Anything else is a defect: `differs`, or `error` that is not ours.
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.support.build import build, head_classes
from tests.support.inputs import batch

MATRIX = Path(__file__).with_name("matrix.json")
DEFECTS = ("differs", "error", "timeout")


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def stock(model: Any, inputs: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The model's own loss and gradients."""
    torch.manual_seed(2)
    model.train()
    model.zero_grad()
    outputs = model(**inputs)
    loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
    if loss is None or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError("the forward returns no loss")
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(model: Any, inputs: dict[str, Any], loss: str) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss and gradients through our Trainer, and how many cross-entropies were replaced."""
    from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
    from maxsup_hf.checks import check_head
    from tests import tiny

    with tempfile.TemporaryDirectory() as folder:
        trainer = MaxSupTrainer(model, MaxSupTrainingArguments(folder, use_cpu=True, loss=loss))
        check_head(model, loss)
        torch.manual_seed(2)
        model.train()
        value, gradient = tiny.gradients(trainer, [inputs])
        return value, gradient, len(trainer._seam.outputs)


def outcome(name: str) -> dict[str, Any]:
    """One row of the matrix."""
    from tests import tiny

    cls = head_classes_by_name[name]
    try:
        model = build(cls)
    except Exception as error:
        return {"outcome": "not built", "reason": short(error)}
    try:
        inputs = batch(model)
        expected, reference = stock(model, inputs)
    except Exception as error:
        own, reference = error, None
    try:
        value, gradient, calls = trained(model, inputs, "cross_entropy") if reference or "inputs" in locals() else (0, {}, 0)
        penalised, _, _ = trained(model, inputs, "maxsup")
    except ValueError as error:
        ours = any(text in str(error) for text in ("loss='cross_entropy'", "smooths its own labels"))
        if ours:
            return {"outcome": "refused", "reason": short(error)}
        return {"outcome": "error" if reference else "no batch", "reason": short(error if reference else own)}
    except Exception as error:
        return {"outcome": "error" if reference else "no batch", "reason": short(error if reference else own)}
    if reference is None:
        return {"outcome": "no batch", "reason": short(own)}
    same = tiny.relative_error(gradient, reference)
    row = {"cross_entropies": calls, "loss_error": abs(value - expected) / abs(expected), "gradient_error": same}
    if row["loss_error"] > 1e-5 or not same <= 1e-5:
        return {"outcome": "differs", **row}
    if not penalised > value:
        return {"outcome": "differs", "reason": f"maxsup {penalised} is not above cross_entropy {value}", **row}
    return {"outcome": "equal", **row}


head_classes_by_name: dict[str, Any] = {}


def _in_child(name: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pipe.send(outcome(name))


def isolated(name: str) -> dict[str, Any]:
    """In a process of its own: what a model does there, a crash included, stays there."""
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=(name, send))
    process.start()
    send.close()
    try:
        row = receive.recv() if receive.poll(90) else {"outcome": "timeout"}
    except EOFError:
        row = {"outcome": "error", "reason": "the process died"}
    process.kill()
    process.join()
    return row


def matrix(only: str = "", jobs: int = 2) -> dict[str, dict[str, Any]]:
    """Class -> row, of all heads whose name matches."""
    import maxsup_hf.trainer  # noqa: F401  (imported once, before the children are made)

    head_classes_by_name.update({n: c for n, c in head_classes().items() if re.search(only, n)})
    names = sorted(head_classes_by_name)
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(names, pool.map(isolated, names), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=MATRIX)
    args = parser.parse_args()
    rows = matrix(args.only, args.jobs)
    args.output.write_text(json.dumps(rows, indent=0, sort_keys=True) + "\n")
    for name, row in rows.items():
        if row["outcome"] in DEFECTS:
            print(name, row)
    print(Counter(row["outcome"] for row in rows.values()))


if __name__ == "__main__":
    main()
