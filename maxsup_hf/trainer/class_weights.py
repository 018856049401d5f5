"""Class weights: parsing what a user passes, and resolving it to a tensor for a model and its training data."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import unwrap_peft_model

from maxsup_hf.data.label_counts import LABEL_NAMES, count_classes
from maxsup_hf.output.messages import listed
from maxsup_hf.trainer.validation import LABELLED_HEADS, ignored_label

logger = logging.getLogger(__name__)

BALANCED = "balanced"
SMALLEST, LARGEST = 1e-12, 1e12
FIX = """write balanced, one number for each class (1,20,0.5 or a JSON list), or numbers by name ({"cat": 1, "dog": 20})"""

# Parts of the class names of transformers' heads that pick one of config.num_labels classes, for rows, tokens or pixels.
CLASSIFYING_HEADS = (*LABELLED_HEADS, "ForAudioFrameClassification", "ForSemanticSegmentation")

ClassWeights = str | list[float] | dict[str, float]


def parse_class_weights(value: Any) -> ClassWeights | None:
    """Parse class weights from the command line, YAML, JSON or Python.

    Args:
        value: `"balanced"`; K numbers, as a sequence, a tensor, a JSON list or `"1,20,0.5"`; a mapping from class names to
            numbers, or a JSON object; or `None`.

    Returns:
        `"balanced"`, a list, a dict, or `None`.

    Raises:
        TypeError: `value` has another type.
        ValueError: an invalid string, a weight that is negative or not finite, or no weight above 0.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = _parse_text(value)
        if value == BALANCED:
            return BALANCED
    if isinstance(value, Mapping):
        named = {str(name): _number(weight, f" of {str(name)!r}") for name, weight in value.items()}
        _check_not_all_zero(list(named.values()))
        return named
    if hasattr(value, "tolist"):  # tensors and arrays
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(
            f"class_weights must be 'balanced', a list of numbers or a mapping from class names, got {value!r}; {FIX}"
        )
    numbers = [_number(weight, f"[{k}]") for k, weight in enumerate(value)]
    _check_not_all_zero(numbers)
    return numbers


def _parse_text(text: str) -> Any:
    text = text.strip()
    if text == BALANCED:
        return BALANCED
    if text.startswith(("[", "{")):
        try:
            return json.loads(text, object_pairs_hook=_without_duplicates)
        except json.JSONDecodeError as error:
            raise ValueError(f"class_weights is not valid JSON ({error}), got {text!r}; {FIX}") from None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"class_weights must be 'balanced', numbers or a JSON object, got {text!r}; {FIX}") from None


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"class_weights must name each class once, got {twice!r} more than once: remove the others")
    return dict(pairs)


def _number(weight: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)  # YAML reads 1e-3 as a string
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (number == 0 or SMALLEST <= number <= LARGEST):  # so that float32 sums neither overflow nor vanish
        raise ValueError(
            f"class_weights{where} must be a finite number that is not negative (0, or from {SMALLEST:g} to {LARGEST:g}), "
            f"got {repr(weight)[:50]}"
        )
    return number


def _check_not_all_zero(weights: Sequence[float]) -> None:
    if not any(weights):
        raise ValueError(
            f"class_weights must have at least one weight above 0, got {weights!r}: the loss would always be 0; {FIX}"
        )


def balanced(counts: Tensor, names: Sequence[str]) -> Tensor:
    """n / (K·n_k), so that all classes contribute equally: scikit-learn's `class_weight="balanced"`.

    Args:
        counts: (K,) number n_k of labels of each class; n is their sum.
        names: of the K classes.

    Returns:
        (K,) float32.

    Raises:
        ValueError: a class has no label (an error in scikit-learn too).
    """
    missing = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if missing:
        raise ValueError(
            f"class_weights='balanced' needs labels of every class in the training data, but there are none of "
            f"{_quoted(missing)} (of {len(names)} classes): remove these classes from the model's id2label, add training "
            "data, or pass the weights as numbers"
        )
    return (counts.sum() / (len(counts) * counts.double())).float()


def resolve_class_weights(
    value: Any, num_classes: int, *, id2label: Mapping[Any, str] | None = None, count: Callable[[], Tensor] | None = None
) -> Tensor:
    """Resolve class weights to a tensor for K classes.

    Args:
        value: see `parse_class_weights`; not `None`.
        num_classes: K.
        id2label: class index -> name, as in a model's config; `None` names them "0", "1", …
        count: returns the (K,) counts of the training labels; called for `"balanced"` only.

    Returns:
        (K,) float32.

    Raises:
        ValueError: a wrong number of weights, unknown or missing names, or, for `"balanced"`, a class without labels; and as
            in `parse_class_weights`.
        TypeError: as in `parse_class_weights`, or `"balanced"` without `count`.
    """
    parsed = parse_class_weights(value)
    labels = {int(k): str(name) for k, name in (id2label or {}).items()}
    names = [labels.get(k, str(k)) for k in range(num_classes)]
    if parsed == BALANCED:
        if count is None:
            raise TypeError("class_weights='balanced' needs training data to count labels in: pass the weights as numbers")
        return balanced(count(), names)
    if isinstance(parsed, dict):
        return torch.tensor(_by_name(parsed, names), dtype=torch.float32)
    assert isinstance(parsed, list)
    if len(parsed) != num_classes:
        raise ValueError(
            f"class_weights must have one weight for each of the model's {num_classes} classes, got {len(parsed)}: pass as "
            "many, or load the model with the right num_labels"
        )
    return torch.tensor(parsed, dtype=torch.float32)


def _by_name(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    unknown = [name for name in weights if name not in names]
    missing = [name for name in names if name not in weights]
    problems = []
    if unknown:
        problems.append(f"unknown: {_quoted(unknown)}")
    if missing:
        problems.append(f"missing: {_quoted(missing)}")
    if problems:
        raise ValueError(
            f"class_weights must name each of the model's {len(names)} classes once ({_quoted(names)}), got "
            f"{'; '.join(problems)}. Correct the names, or set id2label and label2id of the model's config"
        )
    if len(set(names)) < len(names):
        raise ValueError(
            f"class_weights by name need unique class names, but the model's config has {_quoted(names)}: pass a list"
        )
    return [weights[name] for name in names]


def _quoted(names: Sequence[str]) -> str:
    return listed([repr(name) for name in names], 10)


def weights_for_training(
    value: Any, model: nn.Module, dataset: Any, label_names: Sequence[str] = (), ignore_index: int | None = None
) -> Tensor | None:
    """The class weights of a training. Balanced ones are logged.

    Args:
        value: `class_weights` of the training arguments.
        model: determines the number of classes and their names; may be wrapped by PEFT.
        dataset: the training data, whose labels `"balanced"` counts.
        label_names: keys under which rows may hold labels, besides `labels`, `label` and `label_ids`.
        ignore_index: label that is not counted. Default: the one in the config of the head, else −100.

    Returns:
        (K,) float32, or `None` without class weights.

    Raises:
        ValueError, TypeError: the head does not classify; and as in `resolve_class_weights` and `count_classes`. The message
            names class_weights.
    """
    parsed = parse_class_weights(value)
    if parsed is None:
        return None
    model = unwrap_peft_model(model)
    head, config = transformers_head(model), getattr(model, "config", None)
    if head is not None and not any(task in head for task in CLASSIFYING_HEADS):
        raise ValueError(
            f"class_weights are for heads that pick one of K classes for each row, token or pixel, and {head} does not: "
            f"leave class_weights out, or use a head whose name contains one of {', '.join(CLASSIFYING_HEADS)}"
        )
    num_classes = getattr(config, "num_labels", None)
    if head is None and isinstance(parsed, list):  # for a user's own model, the training step checks K
        num_classes = len(parsed)
    if num_classes is None:
        raise ValueError(
            f"class_weights={value!r} needs to know the classes, but {type(model).__name__} has no config.num_labels: pass "
            "a list with one number for each class"
        )
    if ignore_index is None:
        ignore_index = ignored_label(model)

    def count() -> Tensor:
        try:
            return count_classes(dataset, num_classes, ignore_index, (*label_names, *LABEL_NAMES))
        except (TypeError, ValueError) as error:
            raise type(error)(f"class_weights='balanced': {error}; or pass the weights as numbers") from error

    names = getattr(config, "id2label", None) or {}
    weights = resolve_class_weights(parsed, num_classes, id2label=names, count=count)
    if parsed == BALANCED:
        shown = [f"{names.get(k, k)} {weight:.4g}" for k, weight in enumerate(weights.tolist())]
        logger.info("class_weights='balanced': %s", ", ".join(shown[:20]) + (", …" if len(shown) > 20 else ""))
    return weights


def transformers_head(model: nn.Module) -> str | None:
    """Name of the head class in transformers that a model's class is or derives from; `None` for a user's own head."""
    names = (base.__name__ for base in type(model).__mro__ if base.__module__.startswith("transformers."))
    return next((name for name in names if re.search("For[A-Z]|LMHead", name)), None)
