"""Training arguments of transformers with additional fields for the loss."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from maxsup_hf.losses import Loss, create_loss, flatten, prefix_of
from maxsup_hf.output.secrets import Secret, masked, secret
from maxsup_hf.trainer.class_weights import parse_class_weights
from maxsup_hf.trainer.learning_rate import parse_milestones


def parse_loss_kwargs(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Parse loss parameters from the command line, YAML, JSON or Python.

    Args:
        value: a dict, a JSON object (`'{"alpha": 0.1}'`), `"alpha=0.1,alpha_end=0.2"`, or `None` for the defaults.

    Raises:
        TypeError: `value` has another type.
        ValueError: a string in neither format.
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
    """A value of a key=value pair: JSON (`0.1`, `3`, `true`, `null`), `None`, or else a string."""
    try:
        return json.loads("null" if word == "None" else word)
    except json.JSONDecodeError:
        return word


def check_epochs(loss: Loss, epochs: int) -> None:
    """Check that an epoch-wise schedule is as long as the training.

    Raises:
        ValueError: `epochs` of a schedule differs from those of the training.
    """
    for key, value in loss.kwargs.items():
        given = loss.kwargs.get(f"{prefix_of(key)}epochs")
        if str(value).startswith("epoch") and given not in (None, epochs):
            raise ValueError(
                f"{prefix_of(key)}epochs of loss {loss.spec.name!r} must be the epochs of this training, {epochs}, for "
                f"{prefix_of(key)}schedule={value!r}, got {given}: leave it out of loss_kwargs (num_train_epochs sets it), "
                "or train for as many epochs"
            )


@dataclass
class MaxSupArgumentsMixin:
    """Adds the fields of the loss to any `TrainingArguments` class; put it first.

    Raises:
        ValueError, TypeError: an unknown loss or parameter, a value out of bounds or of a wrong type,
            `label_smoothing_factor` together with a loss, `class_weights` that are infinite, NaN, negative or all 0, or
            `fused_linear_loss` with class weights or a loss that needs the logits.

    Example:
        >>> from dataclasses import dataclass
        >>> from transformers import TrainingArguments
        >>> from maxsup_hf import MaxSupArgumentsMixin
        >>> @dataclass
        ... class MyArguments(MaxSupArgumentsMixin, TrainingArguments):
        ...     pass
        >>> MyArguments("out", loss="label_smoothing", loss_kwargs={"alpha": 0.2}).make_loss().values(0.0)
        {'alpha': 0.2}
    """

    loss: str = field(
        default="maxsup",
        metadata={
            "help": "Training loss, by its registered name (`maxsup-hf losses` lists them), or a sum such as "
            "maxsup+z_loss. Evaluation always reports plain cross-entropy."
        },
    )
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Parameters of the loss, as JSON or as key=value pairs: \'{"alpha": 0.1, "alpha_end": 0.2}\' '
            'or alpha=0.1,alpha_end=0.2; for a sum those of each: \'{"maxsup": {"alpha": 0.1}, "z_loss": {"lam": 1e-4}}\''
        },
    )
    class_weights: list[float] | str | dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Class weights in the training loss of a classifier: balanced (n / (K*n_k) of the training labels), one "
            "number for each class (1,20,0.5 or a JSON list), or a JSON object of numbers by class name: "
            '\'{"cat": 1, "dog": 20}\'. Evaluation is not weighted.'
        },
    )
    fused_linear_loss: bool = field(
        default=False,
        metadata={
            "help": "Compute the loss of a language model in chunks from its hidden states and output embedding, without "
            "materializing the logits of a whole batch. Less memory, the same gradients; evaluation is unchanged."
        },
    )
    resume_with_other_loss: bool = field(
        default=False,
        metadata={"help": "Allow resume_from_checkpoint with a loss or loss_kwargs other than those of the checkpoint."},
    )
    resume_anyway: bool = field(
        default=False,
        metadata={
            "help": "Allow resume_from_checkpoint with another seed, number of rows, batch size, accumulation, schedule, "
            "optimizer or learning rate. Weights, state of the optimizer and step are then those of the checkpoint, and the "
            "settings those given here, so the result is not that of an uninterrupted run."
        },
    )
    lr_milestones: list[float] | str | None = field(
        default=None,
        metadata={
            "help": "Let the learning rate fall in steps, in place of lr_scheduler_type: after these shares of the training "
            "(0.6,0.8) it is multiplied by lr_gamma. Warm-up is kept."
        },
    )
    lr_gamma: float = field(default=0.1, metadata={"help": "Factor of the learning rate at each of lr_milestones."})
    push_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds that a push to the Hub may take in all, repeated attempts and pauses included; then the "
            "command that pushes later is printed. Default: 120, 5 more for each MB, and the pauses that the Hub asks for."
        },
    )

    def __post_init__(self) -> None:
        self.loss_kwargs = flatten(parse_loss_kwargs(self.loss_kwargs))
        self.class_weights = parse_class_weights(self.class_weights)
        self.lr_milestones = parse_milestones(self.lr_milestones)
        if not 0 < self.lr_gamma <= 1:
            raise ValueError(f"lr_gamma must be in (0, 1], got {self.lr_gamma}")
        if self.class_weights is not None and self.fused_linear_loss:
            raise ValueError(
                "class_weights are for classifiers, and fused_linear_loss is for language models: leave out one of the two"
            )
        if self.push_timeout is not None and not self.push_timeout > 0:
            raise ValueError(f"push_timeout must be greater than 0 seconds, got {self.push_timeout}")
        if getattr(self, "dataloader_persistent_workers", False) and not getattr(self, "dataloader_num_workers", 0):
            raise ValueError(
                "dataloader_persistent_workers needs dataloader_num_workers, the number of workers, to be at least 1, got 0"
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
        """Create the loss from the current arguments, which a hyperparameter search changes.

        An epoch-wise schedule without `epochs` gets those of this training.

        Raises:
            ValueError, TypeError: an unknown loss or parameter, a value out of bounds or of a wrong type, or `epochs` of a
                schedule that differ from those of this training.
        """
        self.loss_kwargs = flatten(parse_loss_kwargs(self.loss_kwargs))
        if getattr(self, "max_steps", -1) > 0:  # the number of epochs then depends on the data
            return create_loss(self.loss, **self.loss_kwargs)
        epochs = math.ceil(getattr(self, "num_train_epochs", 1))
        for schedule in [key for key, value in self.loss_kwargs.items() if str(value).startswith("epoch")]:
            key = f"{prefix_of(schedule)}epochs"
            # Missing, or set here for a training of another length: num_train_epochs may have changed since.
            if self.loss_kwargs.get(key) == self._filled_in.get(key):
                self.loss_kwargs[key] = self._filled_in[key] = epochs
        loss = create_loss(self.loss, **self.loss_kwargs)
        check_epochs(loss, epochs)
        return loss

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, secret(value) if name == "hub_token" else value)

    def to_dict(self) -> dict[str, Any]:
        """As in `transformers.TrainingArguments`, with the secrets in all texts masked: trackers log it."""
        return _masked_values(super().to_dict())  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return _masked_values(vars(self))  # `training_args.bin` is a pickle


def _masked_values(values: dict[str, Any]) -> dict[str, Any]:
    """Values without secrets in their texts; a `Secret` takes care of itself, and enums of texts stay what they are."""
    return {name: _masked_value(value) for name, value in values.items()}


def _masked_value(value: Any) -> Any:
    if type(value) is dict:
        return _masked_values(value)
    if type(value) is list:
        return [_masked_value(item) for item in value]
    is_clean = not isinstance(value, str) or isinstance(value, Secret) or masked(value) == value
    return value if is_clean else masked(value)


@dataclass
class MaxSupTrainingArguments(MaxSupArgumentsMixin, TrainingArguments):
    """`transformers.TrainingArguments` with a loss.

    Args:
        loss: registered name of the training loss. Default `"maxsup"`.
        loss_kwargs: parameters of the loss, as a dict, a JSON string or `"key=value,…"`. Default: those of the loss; for
            `maxsup`, alpha rises linearly from 0.1 to 0.2 over training (arXiv 2502.15798).
        class_weights: weight of each class in the training loss: `"balanced"` (n / (K·n_k) of the training labels, as in
            scikit-learn), K numbers, or a mapping from class names, also as text; see
            `maxsup_hf.trainer.class_weights`. Evaluation is not weighted. Default `None`.
        fused_linear_loss: train a language model without materializing the logits of a whole batch, see
            `maxsup_hf.trainer.lm_head_patch`. Models that it does not support are rejected. Default False.
        resume_with_other_loss: allow resuming a checkpoint with another loss or other loss_kwargs. Default False.
        resume_anyway: allow resuming a checkpoint with other settings that decide the continuation, see
            `maxsup_hf.trainer.continuation`. Default False.
        lr_milestones: rising shares of the training at which the learning rate is multiplied by `lr_gamma`, in place of
            `lr_scheduler_type`. Default `None`.
        lr_gamma: in (0, 1]. Default 0.1.
        push_timeout: seconds that a push may take in all. Default: 120, 5 more for each MB, and the pauses that the Hub
            asks for.
        Everything else: see `transformers.TrainingArguments`.

    Example:
        >>> from maxsup_hf import MaxSupTrainingArguments
        >>> MaxSupTrainingArguments("out", loss="maxsup+z_loss", loss_kwargs='{"maxsup": {"alpha": 0.1}}').loss
        'maxsup+z_loss'
    """


@dataclass
class MaxSupSeq2SeqTrainingArguments(MaxSupArgumentsMixin, Seq2SeqTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` with the fields of `MaxSupTrainingArguments`.

    Example:
        >>> from maxsup_hf import MaxSupSeq2SeqTrainingArguments
        >>> MaxSupSeq2SeqTrainingArguments("out", loss_kwargs="alpha=0.1,alpha_end=0.3").loss_kwargs
        {'alpha': 0.1, 'alpha_end': 0.3}
    """
