"""Validation of heads, arguments and data before training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sized
from types import CodeType
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.trainer_utils import unwrap_peft_model

from maxsup_hf.data.columns import read_column
from maxsup_hf.data.label_counts import LABEL_NAMES
from maxsup_hf.losses import IGNORE_INDEX

# Heads whose logits have one column for each of config.num_labels.
LABELLED_HEADS = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
    "ForTokenClassification",
)


def num_labels(model: Any) -> int | None:
    """Number of classes of a classification head, `None` for heads that config.num_labels does not describe."""
    return model.config.num_labels if getattr(model, "loss_type", None) in LABELLED_HEADS else None


def ignored_label(model: Any) -> int:
    """The label that a head ignores."""
    config = getattr(model, "config", None)
    return getattr(config, "semantic_loss_ignore_index", getattr(config, "loss_ignore_index", IGNORE_INDEX))


def head_problem(model: Any) -> str | None:
    """Why a head has no K-way cross-entropy, or `None`."""
    classes = num_labels(model)
    if classes is None:
        return None
    problem_type = getattr(model.config, "problem_type", None)
    if problem_type in ("regression", "multi_label_classification"):
        return f"config.problem_type is {problem_type!r}"
    if classes == 1:
        return "config.num_labels is 1, which transformers trains as a regression"
    return None


def shifts_labels(model: Any) -> bool:
    """Whether the head computes its loss with transformers' `ForCausalLMLoss`, which shifts the labels by one.

    Encoder-decoders that use it shift the decoder's inputs instead. `loss_type` alone does not tell: it is `None` for heads
    named `*LMHeadModel` (GPT-2, OpenAI GPT, BERT), whose `loss_function` is this one. So the forward must call it, too.
    """
    model = unwrap_peft_model(model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    function = getattr(model, "_loss_function", None)
    if function is None:
        function = LOSS_MAPPING.get(str(getattr(model, "loss_type", None)), ForCausalLMLoss)
    code = code_of(type(model).forward)
    return function is ForCausalLMLoss and code is not None and "loss_function" in code.co_names


def predicts_next_token(model: Any) -> bool:
    """Whether the logits at a position are for the next position's label, whichever code of the head shifts them."""
    code = code_of(type(unwrap_peft_model(model)).forward)
    return shifts_labels(model) or (code is not None and "shift_logits" in code.co_varnames)


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """Code of a function or method, inside its decorators."""
    return getattr(inspect.unwrap(function), "__code__", None)


def check_head(model: nn.Module, loss: str) -> None:
    """Reject regression and multi-label heads.

    Raises:
        ValueError: the head has no cross-entropy over at least two classes.
    """
    problem = head_problem(model)
    if problem:
        raise ValueError(
            f"loss={loss!r} needs a head that picks one of at least 2 classes, but {type(model).__name__} does not: "
            f"{problem}. Set num_labels and problem_type='single_label_classification', or use the stock Trainer for this "
            "head"
        )


def check_liger(args: Any) -> None:
    """Reject Liger's kernels that compute the cross-entropy themselves, most of them without materializing the logits.

    Raises:
        ValueError: `use_liger_kernel` with such a kernel enabled.
    """
    config = getattr(args, "liger_kernel_config", None) or {}
    if getattr(args, "use_liger_kernel", False) and (
        config.get("fused_linear_cross_entropy", True) or config.get("cross_entropy", False)
    ):
        raise ValueError(
            f"use_liger_kernel computes cross-entropy in a kernel of its own, which loss={args.loss!r} cannot replace: keep "
            """Liger's other kernels with --liger_kernel_config '{"fused_linear_cross_entropy": false, "cross_entropy": """
            """false}', or leave use_liger_kernel out"""
        )


def check_fused(trainer: Any, mixes: bool) -> None:
    """Reject ways of training that `fused_linear_loss` does not support.

    Args:
        trainer: with its model, arguments and data.
        mixes: whether its collator makes soft labels.

    Raises:
        ValueError: torch.compile, DataParallel, DeepSpeed ZeRO-3, or soft labels.
    """
    args, model = trainer.args, trainer.model
    plugin = trainer.accelerator.state.dynamo_plugin  # set by `accelerate launch --dynamo_backend`
    compiled = args.torch_compile or hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
    zero3 = getattr(getattr(args, "hf_deepspeed_config", None), "is_zero3", lambda: False)()
    for is_found, conflict in (
        (compiled or plugin.backend != DynamoBackend.NO, "torch.compile: leave torch_compile and dynamo_backend out"),
        (args.n_gpu > 1, "torch's DataParallel: start one process for each GPU with `accelerate launch` or torchrun"),
        (zero3, "DeepSpeed ZeRO-3, which shards each layer by itself: use ZeRO-2 or FSDP"),
        (mixes or _has_soft_labels(trainer.train_dataset), "soft labels: leave out Mixup and other class probabilities"),
    ):
        if is_found:
            raise ValueError(
                f"fused_linear_loss, asked for {type(model).__name__}, cannot be combined with {conflict}, or leave "
                "fused_linear_loss out"
            )


def _has_soft_labels(dataset: Any) -> bool:
    """Whether the column types of a data set say that its labels are class probabilities."""
    features = dataset.features if isinstance(dataset, datasets.Dataset) else {}
    labels: Any = features.get("labels")
    while hasattr(labels, "feature"):  # lists of lists
        labels = labels.feature
    return "soft_labels" in features or getattr(labels, "dtype", "").startswith("float")


def check_float_labels(labels: Tensor, model: nn.Module) -> None:
    """Check that floating labels are class probabilities: for each prediction K values that sum to 1.

    Raises:
        ValueError: they do not have the shape of the logits, or rows do not sum to 1.
    """
    classes = num_labels(model)
    shape = tuple(labels.shape)
    if labels.ndim < 2 or (classes is not None and shape[-1] != classes):
        columns = "K" if classes is None else classes
        raise ValueError(
            f"floating labels must be class probabilities of the logits' shape, {(*shape[:1], columns)}, got {labels.dtype} "
            f"of shape {shape}: class indices must be integers, and a regression needs the stock Trainer"
        )
    sums = labels.sum(-1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise ValueError(
            f"floating labels must be class probabilities whose rows sum to 1, got sums from {sums.min().item():g} to "
            f"{sums.max().item():g}: a multi-label head needs the stock Trainer"
        )


def check_train_dataset(dataset: Any, model: nn.Module) -> None:
    """Check the labels of a data set, where they can be read without running its transforms.

    Raises:
        ValueError: the data set is empty, all its labels are ignored, or those for a classification head are floating or
            outside [0, K).
    """
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise ValueError("train_dataset is empty: it must have at least one example")
    _check_some_label_counts(dataset, ignored_label(model))
    classes = num_labels(model)
    if not isinstance(dataset, datasets.Dataset) or classes is None:
        return
    for name in ("labels", "label"):
        feature = dataset.features.get(name)
        if not isinstance(feature, datasets.Value | datasets.ClassLabel):
            continue
        if feature.dtype.startswith("float"):
            raise ValueError(
                f"column {name!r} of train_dataset is {feature.dtype}, but class labels must be integers in [0, {classes}): "
                "convert them, or use the stock Trainer for a regression"
            )
        if not feature.dtype.startswith(("int", "uint")):
            continue
        values = [v for v in pc.unique(read_column(dataset, name)).to_pylist() if v is not None and v != IGNORE_INDEX]
        wrong = sorted(v for v in values if not 0 <= v < classes)
        if wrong:
            raise ValueError(
                f"labels in column {name!r} of train_dataset must be in [0, {classes}) for config.num_labels={classes}, got "
                f"{wrong[:5]}: load the model with the right num_labels, or correct the labels ({IGNORE_INDEX} marks rows "
                "to ignore)"
            )


def _check_some_label_counts(dataset: Any, ignored: int) -> None:
    """Raise ValueError if all labels of the rows, tokens or pixels are ignored. Reading stops at the first that is not."""
    count = 0
    for labels in _label_batches(dataset):
        if (labels != ignored).any():
            return
        count += labels.numel()
    if count:
        raise ValueError(
            f"all {count} labels of train_dataset are {ignored}, which is ignored: there is nothing to train; correct the "
            "labels"
        )


def _label_batches(dataset: Any) -> Iterator[Tensor]:
    """The integer labels that a `datasets.Dataset` stores, or that the rows of a list hold, in batches of any shape."""
    if isinstance(dataset, datasets.Dataset):
        name = next((name for name in LABEL_NAMES if name in dataset.features), None)
        stored = [] if name is None else dataset.select_columns(name).with_format("arrow").iter(1000)
        for batch in stored:
            values = batch.column(0).combine_chunks()
            while isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
                values = values.flatten()
            if isinstance(values, pa.ExtensionArray) or not pa.types.is_integer(values.type):
                return
            yield torch.from_numpy(pc.drop_null(values).to_numpy(zero_copy_only=False).astype("int64"))
    elif isinstance(dataset, (list, tuple)):
        for row in dataset:
            name = next((name for name in LABEL_NAMES if isinstance(row, Mapping) and name in row), None)
            if not isinstance(name, str) or not isinstance(row[name], (int, list, Tensor)):
                return
            yield torch.as_tensor(row[name])
