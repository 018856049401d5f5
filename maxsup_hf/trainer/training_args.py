"""Training arguments with a loss: four fields beside transformers' own."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from maxsup_hf.losses import Loss, create_loss, flatten, prefix_of
from maxsup_hf.trainer.class_weights import parse_class_weights


def parse_loss_kwargs(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Loss parameters as they come from the command line, YAML, JSON or Python.

    Args:
        value: a dict, a JSON object (`'{"alpha": 0.1}'`), `"alpha=0.1,alpha_end=0.2"`, or `None` for none.

    Raises:
        TypeError: anything else.
        ValueError: a string that is neither.
    """
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        raise TypeError(f"loss_kwargs must be a dict, a JSON object or 'key=value,…', got {type(value).__name__} {value!r}")
    fix = """write '{"alpha": 0.1, "alpha_end": 0.2}' or alpha=0.1,alpha_end=0.2"""
    text = value.strip()
    if text.startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"loss_kwargs is not valid JSON ({error}), got {value!r}; {fix}") from None
    kwargs = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, word = pair.partition("=")
        if not (equals and key.strip()):
            raise ValueError(f"loss_kwargs must be a JSON object or key=value pairs, got {value!r}; {fix}")
        kwargs[key.strip()] = _scalar(word.strip())
    return kwargs


def _scalar(word: str) -> Any:
    """`0.1`, `3`, `true`, `null` (also `None`) as in JSON; any other word is a string."""
    try:
        return json.loads("null" if word == "None" else word)
    except json.JSONDecodeError:
        return word


def check_epochs(loss: Loss, epochs: int) -> None:
    """Refuse an epoch-wise schedule of another length than the training, which would end early or never reach its end.

    Raises:
        ValueError: names the argument.
    """
    for key, value in loss.kwargs.items():
        given = loss.kwargs.get(f"{prefix_of(key)}epochs")
        if str(value).startswith("epoch") and given not in (None, epochs):
            raise ValueError(
                f"{prefix_of(key)}epochs of loss {loss.spec.name!r} must be the epochs of this training, {epochs}, for "
                f"{prefix_of(key)}schedule={value!r}, got {given}: leave it out of loss_kwargs (with num_train_epochs it is "
                "filled in), or train for as many epochs"
            )


@dataclass
class MaxSupArgumentsMixin:
    """Adds the loss to any `TrainingArguments` class; put it first:
    `@dataclass class MyArguments(MaxSupArgumentsMixin, SFTConfig): ...`

    Raises at construction:
        ValueError, TypeError: an unknown loss or parameter, a value out of bounds or of a wrong type,
            `label_smoothing_factor` set beside the loss, `class_weights` that are not finite, negative or all 0, or
            `fused_linear_loss` with a loss that needs the logits or with class weights.
    """

    loss: str = field(
        default="maxsup",
        metadata={
            "help": "Training loss, by its registered name (`maxsup-hf losses` lists them), or a sum of them, "
            "maxsup+z_loss. Evaluation always reports plain cross-entropy."
        },
    )
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Parameters of the loss, as JSON or as key=value pairs: \'{"alpha": 0.1, "alpha_end": 0.2}\' '
            'or alpha=0.1,alpha_end=0.2; of a sum those of each: \'{"maxsup": {"alpha": 0.1}, "z_loss": {"lam": 1e-4}}\''
        },
    )
    class_weights: list[float] | str | dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Weights of the classes in the training loss of a classifier: balanced (n / (K*n_k) of the training "
            "labels), one number for each class (1,20,0.5 or a JSON list), or numbers by name as JSON: "
            '\'{"cat": 1, "dog": 20}\'. Evaluation is not weighted.'
        },
    )
    fused_linear_loss: bool = field(
        default=False,
        metadata={
            "help": "Compute the loss of a language model from its hidden states and output embedding in chunks: the logits "
            "of a whole batch are never made. Less memory, the same gradients; evaluation is untouched."
        },
    )
    resume_with_other_loss: bool = field(
        default=False,
        metadata={"help": "Allow resume_from_checkpoint with another loss or other loss_kwargs than the checkpoint's."},
    )

    def __post_init__(self) -> None:
        self.loss_kwargs = flatten(parse_loss_kwargs(self.loss_kwargs))
        self.class_weights = parse_class_weights(self.class_weights)
        if self.class_weights is not None and self.fused_linear_loss:
            raise ValueError(
                "class_weights are for classifiers, and fused_linear_loss is for language models: leave one of them out"
            )
        factor = getattr(self, "label_smoothing_factor", 0.0)
        if factor:
            raise ValueError(
                f"label_smoothing_factor={factor} and loss={self.loss!r} are two losses for one training: for label "
                f"""smoothing write --loss label_smoothing --loss_kwargs '{{"alpha": {factor}}}', for MaxSup at that """
                f"""strength --loss maxsup --loss_kwargs '{{"alpha": {factor}, "alpha_end": {factor}}}', and leave """
                "label_smoothing_factor at 0"
            )
        self._filled_in: dict[str, int] = {}
        loss = self.make_loss()
        if self.fused_linear_loss:
            loss.require_row_statistics("fused_linear_loss")
        super().__post_init__()  # type: ignore[misc]

    def make_loss(self) -> Loss:
        """Make the loss that the arguments ask for now: a hyperparameter search changes them.

        An epoch-wise schedule gets the epochs of this training where they are not given.

        Raises:
            ValueError, TypeError: an unknown loss or parameter, a value out of bounds or of a wrong type, or `epochs` of a
                schedule that are not those of this training.
        """
        self.loss_kwargs = flatten(parse_loss_kwargs(self.loss_kwargs))
        if getattr(self, "max_steps", -1) <= 0:
            epochs = math.ceil(getattr(self, "num_train_epochs", 1))
            for schedule in [key for key, value in self.loss_kwargs.items() if str(value).startswith("epoch")]:
                key = f"{prefix_of(schedule)}epochs"
                if self.loss_kwargs.get(key) == self._filled_in.get(key):
                    self.loss_kwargs[key] = self._filled_in[key] = epochs
        loss = create_loss(self.loss, **self.loss_kwargs)
        if getattr(self, "max_steps", -1) <= 0:
            check_epochs(loss, epochs)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled, as `training_args.bin` is: everything but the token."""
        return vars(self) | {"hub_token": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = copy.copy(self)  # a copy is no file: it keeps the token
        vars(other).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return other


@dataclass
class MaxSupTrainingArguments(MaxSupArgumentsMixin, TrainingArguments):
    """`transformers.TrainingArguments` with a loss.

    Args:
        loss: registered name of the training loss. Default `"maxsup"`.
        loss_kwargs: its parameters, as a dict, a JSON string or `"key=value,…"`. Default: the loss's own defaults; for
            `maxsup` alpha rises linearly from 0.1 to 0.2 over training (arXiv 2502.15798).
        class_weights: weight of each class in the training loss: `"balanced"` (n / (K·n_k) of the training labels, as in
            scikit-learn), K numbers, or a mapping from class names, also as text; see
            `maxsup_hf.trainer.class_weights`. Evaluation stays unweighted. Default `None`.
        fused_linear_loss: train a language model without ever making the logits of a whole batch, see
            `maxsup_hf.trainer.lm_head_patch`; a model that it cannot serve is refused. Default False.
        resume_with_other_loss: allow resuming a checkpoint of another loss or other loss_kwargs. Default False: refused.
        Everything else: see `transformers.TrainingArguments`.
    """


@dataclass
class MaxSupSeq2SeqTrainingArguments(MaxSupArgumentsMixin, Seq2SeqTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` with the fields of `MaxSupTrainingArguments`."""
