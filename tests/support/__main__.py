"""Support matrix: every head of the installed transformers, trained for one step with two losses.

    python -m tests.support [--only REGEX] [--jobs 2]      # about five minutes on 2 cores

Writes tests/support/matrix.json and, for people, matrix.md. Exits with 1 where an outcome is a defect: `differs`,
`timeout`, or an `error` that is not ours.
"""

import argparse
import inspect
import json
import multiprocessing
import re
import tempfile
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.build import build, head_classes
from tests.support.inputs import batch

MATRIX = Path(__file__).with_name("matrix.json")
OUTCOMES = {
    "equal": "trains with maxsup; with cross_entropy its loss and gradients are the model's own to 1e-6 relative; cut into "
    "micro-batches of one row the gradient of maxsup is that of the whole batch to 1e-6, unless the row says otherwise",
    "refused": "our error with the reason, before anything is trained",
    "no training": "transformers itself has no loss for this head: its forward refuses labels or returns none",
    "no batch": "a tiny model was built, but its own forward does not take our batch: not tried",
    "not built": "no tiny model could be made from the default config, or a package that it needs is missing: not tried",
}
REFUSALS = ("loss='cross_entropy'", "smooths its own labels", "stock Trainer")  # how our own errors are known
NO_LOSS = "the forward returns no loss"
UNTRAINABLE = re.compile(
    rf"{NO_LOSS}|NotImplementedError.*(T|t)raining|not trainable|does not support training|"
    r"Training with .* is not supported|"
    r"ForCausalLMLoss\(\) missing|"  # the loss that transformers picks for two transducers cannot take their arguments
    r"no attribute 'vocab_size'"  # which the loss of Qwen3-Omni's talker asks its config for
)
LABELS = re.compile(r"label|target|_positions?$|return_loss|future_values|mask_time_indices|actions$")
DEFECTS = ("differs", "error", "timeout")


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def stock(model: Any, inputs: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The model's own loss and gradients."""
    torch.manual_seed(2)
    model.train()
    model.zero_grad()
    outputs = model(**inputs)
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
    if loss is None or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(NO_LOSS)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(model: Any, inputs: dict[str, Any], loss: str) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss and gradients through our Trainer, and how many cross-entropies were replaced."""
    from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
    from maxsup_hf.trainer.validation import check_head
    from tests import tiny

    with tempfile.TemporaryDirectory() as folder:
        trainer = MaxSupTrainer(model, MaxSupTrainingArguments(folder, use_cpu=True, loss=loss))
        check_head(model, loss)
        torch.manual_seed(2)
        model.train()
        value, gradient = tiny.gradients(trainer, [inputs])
        return value, gradient, len(trainer._training.patch.calls)


def uneven(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with fewer and fewer counted labels in its rows, where a row has several."""
    labels, config = inputs.get("labels"), model.config
    ignored = getattr(config, "semantic_loss_ignore_index", getattr(config, "loss_ignore_index", -100))
    several = torch.is_tensor(labels) and not labels.is_floating_point() and labels.ndim > 1
    if not several or labels.shape[-1] == getattr(model.config, "num_labels", None):
        return inputs
    labels = labels.clone()
    labels[0, 2:] = labels[1, 7:] = ignored
    return inputs | {"labels": labels}


def cut_error(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """How far the gradient of micro-batches of one row is from that of the whole batch."""
    from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
    from tests import tiny

    tiny.freeze_batch_norm(model)
    rows = len(next(x for name, x in inputs.items() if LABELS.search(name) and torch.is_tensor(x)))
    pieces = {k: x.split(1) if torch.is_tensor(x) and x.ndim and len(x) == rows else [x] * rows for k, x in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = MaxSupTrainer(model, MaxSupTrainingArguments(folder, use_cpu=True))
        gradients = []
        for batches in ([inputs], [{k: piece[i] for k, piece in pieces.items()} for i in range(rows)]):
            torch.manual_seed(2)
            gradients.append(tiny.gradients(trainer, batches)[1])
    return {"cut_error": tiny.relative_error(gradients[1], gradients[0])}


def cut(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """`cut_error`, in float64 where float32 is not exact enough to tell, or why it was refused."""
    inputs = uneven(model, inputs)
    try:
        row = cut_error(model, inputs)
        if row["cut_error"] > 1e-6:
            doubles = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
            row = cut_error(model.double(), doubles)
    except Exception as error:
        return {"cut_refused": short(error)}
    return row


def in_double(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same comparison in float64."""
    from tests import tiny

    model = model.double()
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    try:
        expected, reference = stock(model, inputs)
        value, gradient, _ = trained(model, inputs, "cross_entropy")
    except Exception as error:
        return {"reason": f"in float64: {short(error)}"}
    errors = {
        "loss_error": abs(value - expected) / abs(expected),
        "gradient_error": tiny.relative_error(gradient, reference),
    }
    return {"dtype": "float64", **errors}


def prepared(cls: Any) -> tuple[Any, bool, dict[str, Any], float, dict[str, torch.Tensor], Exception | None]:
    """A model, whether all of its sizes are small, and a batch with the stock loss and gradients, or with the error of the
    model's own forward."""
    error: Exception | None = None
    found: Any = None
    for sizes in (True, False):
        try:
            model = build(cls, sizes)
        except Exception as problem:
            error = error or problem
            continue
        try:
            inputs = batch(model)
            found = found or (model, sizes, inputs)
            return model, sizes, inputs, *stock(model, inputs), None
        except Exception as problem:
            error = error if error and found and UNTRAINABLE.search(named(error)) else problem
    if found is None:
        raise error or ValueError("no config class")
    return *found, 0.0, {}, error


def untrainable(cls: Any, own: Exception, given: set[str]) -> str | None:
    """Why transformers has no loss for a head, as far as its forward's error and arguments say."""
    labels = [name for name in inspect.signature(cls.forward).parameters if LABELS.search(name)]
    if str(own) == NO_LOSS and labels and not set(labels) & given:
        return None  # our batch has none
    if UNTRAINABLE.search(named(own)):
        return short(own)
    alone = labels or re.search("Pre[tT]raining|Masked", cls.__name__)  # may make its labels of the inputs
    return None if alone else "its forward takes no labels"


def outcome(name: str) -> dict[str, Any]:
    """One row of the matrix."""
    from tests import tiny

    cls = head_classes_by_name[name]
    try:
        model, sizes, inputs, expected, reference, own = prepared(cls)
    except Exception as error:
        reason = None if isinstance(error, ImportError) else untrainable(cls, error, set())
        return {"outcome": "no training", "reason": reason} if reason else {"outcome": "not built", "reason": short(error)}
    try:
        value, gradient, calls = trained(model, inputs, "cross_entropy")
        penalised, _, _ = trained(model, inputs, "maxsup")
    except Exception as error:
        ours = isinstance(error, ValueError) and any(text in str(error) for text in REFUSALS)
        if own is None:
            return {"outcome": "refused" if ours else "error", "reason": short(error)}
        told = "our error" if ours else short(error)
    else:
        told = "no error"
    if own:
        if isinstance(own, ImportError):
            return {"outcome": "not built", "reason": short(own)}
        reason = untrainable(cls, own, set(inputs))
        if reason:
            return {"outcome": "no training", "reason": reason, "trainer": told}
        return {"outcome": "no batch", "reason": short(own)}
    row = {"cross_entropies": calls, "loss_error": abs(value - expected) / abs(expected)}
    row["gradient_error"] = tiny.relative_error(gradient, reference)
    if not (row["loss_error"] <= 1e-6 and row["gradient_error"] <= 1e-6):
        row |= in_double(model, inputs)  # is it float32's noise, or another loss?
        if not (row["loss_error"] <= 1e-6 and row["gradient_error"] <= 1e-6):  # many heads cast logits to float32
            return {"outcome": "differs", **row}
    if not penalised >= value:
        return {"outcome": "differs", "reason": f"maxsup {penalised} is below cross_entropy {value}", **row}
    return {"outcome": "equal", **row, **cut(build(cls, sizes), inputs)}


head_classes_by_name: dict[str, Any] = {}
# One fork at a time: filelock refuses a second beside it, and no child inherits the end of another's pipe.
FORKING = threading.Lock()


def _in_child(name: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pipe.send(outcome(name))


def isolated(name: str) -> dict[str, Any]:
    """In a process of its own: what a model does there, a crash included, stays there."""
    fork = multiprocessing.get_context("fork")
    with FORKING:
        receive, send = fork.Pipe(duplex=False)
        process = fork.Process(target=_in_child, args=(name, send))
        process.start()
        send.close()
    try:
        row = receive.recv() if receive.poll(180) else {"outcome": "timeout"}
    except EOFError:
        row = {"outcome": "error", "reason": "the process died"}
    process.kill()
    process.join()
    return row


def matrix(only: str = "", jobs: int = 2) -> dict[str, dict[str, Any]]:
    """Class -> row, of all heads whose name matches."""
    import maxsup_hf.trainer.trainer  # noqa: F401  (imported once, before the children are made)

    head_classes_by_name.update({n: c for n, c in head_classes().items() if re.search(only, n)})
    names = sorted(head_classes_by_name)
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(names, pool.map(isolated, names), strict=True))


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The matrix as a page."""
    counts = Counter(row["outcome"] for row in rows.values())
    lines = [f"# Support matrix: the {len(rows)} heads of transformers {transformers.__version__}", ""]
    lines += ["Made by `python -m tests.support`.", "", "| outcome | heads | meaning |", "|---|---|---|"]
    lines += [f"| {outcome} | {counts[outcome]} | {meaning} |" for outcome, meaning in OUTCOMES.items()]
    for outcome in OUTCOMES:
        lines += ["", f"## {outcome}", ""]
        for name, row in rows.items():
            if row["outcome"] == outcome:
                several = f" ({row['cross_entropies']} cross-entropies)" if row.get("cross_entropies", 1) > 1 else ""
                reason = " ".join(row.get("reason", "").replace("|", "/").split())[:110]
                lines.append(f"- {name}{several}" + (f": {reason}" if reason else "") + of_the_cut(row))
    return "\n".join(lines) + "\n"


def of_the_cut(row: dict[str, Any]) -> str:
    """What is said of the cut where it is not exact to 1e-6."""
    if row.get("cut_error", 0) > 1e-6:
        return f"; cut into rows, its gradient is {row['cut_error']:.0e} off"
    return f"; cut into rows: {row['cut_refused'].replace('|', '/')[:110]}" if "cut_refused" in row else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=MATRIX)
    args = parser.parse_args()
    rows = matrix(args.only, args.jobs)
    content = {"transformers": transformers.__version__, "heads": rows}
    args.output.write_text(json.dumps(content, indent=0, sort_keys=True) + "\n")
    args.output.with_suffix(".md").write_text(markdown(rows))
    print(Counter(row["outcome"] for row in rows.values()))
    defects = {name: row for name, row in rows.items() if row["outcome"] in DEFECTS}
    for name, row in defects.items():
        print(name, row)
    raise SystemExit(bool(defects))


if __name__ == "__main__":
    main()
