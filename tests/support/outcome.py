"""One row of the support matrix: what becomes of a head that is trained for one step with two losses."""

import inspect
import re
import tempfile
from typing import Any

import torch

from tests.support.build import build
from tests.support.inputs import batch

# Words by which the errors of this library are recognised.
REFUSALS = ("loss='cross_entropy'", "smooths its own labels", "stock Trainer")
NO_LOSS = "the forward returns no loss"
UNTRAINABLE = re.compile(
    rf"{NO_LOSS}|NotImplementedError.*(T|t)raining|not trainable|does not support training|"
    r"Training with .* is not supported|"
    r"ForCausalLMLoss\(\) missing|"  # transformers calls it for two transducers with arguments it does not take
    r"no attribute 'vocab_size'"  # missing in the config of Qwen3-Omni's talker, whose loss reads it
)
LABELS = re.compile(r"label|target|_positions?$|return_loss|future_values|mask_time_indices|actions$")


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def stock(model: Any, inputs: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the model itself, without this library."""
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
    """Loss and gradients with `MaxSupTrainer`, and how many cross-entropies it replaced."""
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
    """The batch with a different number of ignored labels in each row, if a row has several labels."""
    labels, config = inputs.get("labels"), model.config
    ignored = getattr(config, "semantic_loss_ignore_index", getattr(config, "loss_ignore_index", -100))
    several = torch.is_tensor(labels) and not labels.is_floating_point() and labels.ndim > 1
    if not several or labels.shape[-1] == getattr(model.config, "num_labels", None):
        return inputs
    labels = labels.clone()
    labels[0, 2:] = labels[1, 7:] = ignored
    return inputs | {"labels": labels}


def cut_error(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The relative error of the gradient of micro-batches of one row, compared with that of the whole batch."""
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
    """`cut_error`, repeated in float64 if float32 may not be exact enough, or the reason for which it was refused."""
    inputs = uneven(model, inputs)
    try:
        row = cut_error(model, inputs)
        if row["cut_error"] > 1e-6:
            row = cut_error(model.double(), doubles(inputs))
    except Exception as error:
        return {"cut_refused": short(error)}
    return row


def doubles(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}


def in_double(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The comparison of cross_entropy with the model's own loss, in float64."""
    model, inputs = model.double(), doubles(inputs)
    try:
        expected, reference = stock(model, inputs)
        value, gradient, _ = trained(model, inputs, "cross_entropy")
    except Exception as error:
        return {"reason": f"in float64: {short(error)}"}
    return {"dtype": "float64", **errors(value, gradient, expected, reference)}


def errors(value: float, gradient: Any, expected: float, reference: Any) -> dict[str, float]:
    """The relative errors of loss and gradient."""
    from tests import tiny

    return {
        "loss_error": abs(value - expected) / abs(expected),
        "gradient_error": tiny.relative_error(gradient, reference),
    }


def equal(row: dict[str, Any]) -> bool:
    return row["loss_error"] <= 1e-6 and row["gradient_error"] <= 1e-6


def prepared(cls: Any) -> tuple[Any, bool, dict[str, Any], float, dict[str, torch.Tensor], Exception | None]:
    """A model, whether all of its sizes are small, a batch, and the model's own loss and gradients, or the error of its own
    forward.

    If the forward of the small model fails, the larger one is tried, since the fault may be in sizes that do not match.
    """
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
    """Why transformers has no loss for a head, judged by its forward's error and arguments; `None` if it may have one."""
    labels = [name for name in inspect.signature(cls.forward).parameters if LABELS.search(name)]
    if str(own) == NO_LOSS and labels and not set(labels) & given:
        return None  # the batch has no labels for it, so this says nothing
    if UNTRAINABLE.search(named(own)):
        return short(own)
    may_train = labels or re.search("Pre[tT]raining|Masked", cls.__name__)  # may derive its labels from the inputs
    return None if may_train else "its forward takes no labels"


def outcome(cls: Any) -> dict[str, Any]:
    """One row of the matrix."""
    try:
        model, sizes, inputs, expected, reference, own = prepared(cls)
    except Exception as error:
        reason = None if isinstance(error, ImportError) else untrainable(cls, error, set())
        return {"outcome": "no training", "reason": reason} if reason else {"outcome": "not built", "reason": short(error)}
    try:
        value, gradient, calls = trained(model, inputs, "cross_entropy")
        penalised, _, _ = trained(model, inputs, "maxsup")
    except Exception as error:
        is_ours = isinstance(error, ValueError) and any(words in str(error) for words in REFUSALS)
        if own is None:
            return {"outcome": "refused" if is_ours else "error", "reason": short(error)}
        return without_own_loss(cls, own, set(inputs), "our error" if is_ours else short(error))
    if own is not None:
        return without_own_loss(cls, own, set(inputs), "no error")
    row = {"cross_entropies": calls, **errors(value, gradient, expected, reference)}
    if not equal(row):
        row |= in_double(model, inputs)  # rounding in float32, or another loss?
        if not equal(row):
            return {"outcome": "differs", **row}
    if not penalised >= value:
        return {"outcome": "differs", "reason": f"maxsup {penalised} is below cross_entropy {value}", **row}
    return {"outcome": "equal", **row, **cut(build(cls, sizes), inputs)}


def without_own_loss(cls: Any, own: Exception, given: set[str], told: str) -> dict[str, Any]:
    """The row of a head whose own forward fails with `own`; `told` is what our Trainer did."""
    if isinstance(own, ImportError):
        return {"outcome": "not built", "reason": short(own)}
    reason = untrainable(cls, own, given)
    if reason:
        return {"outcome": "no training", "reason": reason, "trainer": told}
    return {"outcome": "no batch", "reason": short(own)}
