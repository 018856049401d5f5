"""A registered loss for the stock `Trainer`, through its argument `compute_loss_func`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from maxsup_hf.losses import IGNORE_INDEX, create_loss
from maxsup_hf.trainer.class_weights import weights_for_training
from maxsup_hf.trainer.validation import check_head, shifts_labels


class ComputeLoss(TrainerCallback):
    """Created by `compute_loss_func`: the loss function, and a callback that tracks the progress of the training."""

    def __init__(self, name: str, model: nn.Module, weight: Any = None, **loss_kwargs: Any):
        try:
            self.weight = weights_for_training(weight, model, None)
        except (ValueError, TypeError) as error:
            raise type(error)(f"weight of compute_loss_func: {error}") from error
        self.has_begun = False
        self.loss = create_loss(name, **loss_kwargs)
        self.plain = create_loss("cross_entropy")
        if self.loss.state is not None:
            raise ValueError(
                f"loss {name!r} learns from epoch to epoch and saves its state in checkpoints, which a compute_loss_func "
                "cannot: use MaxSupTrainer"
            )
        if self.loss.needs_votes:
            raise ValueError(
                f"loss {name!r} with dense=True needs the model's last feature map, which a compute_loss_func does not get: "
                "use MaxSupTrainer, or set dense=False"
            )
        check_head(model, name)
        self.model = model
        self.shifts_labels = shifts_labels(model)
        self.progress: float | None = None if self.loss.is_scheduled else 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={args.label_smoothing_factor} is ignored with a compute_loss_func: leave it out, "
                f"loss {self.loss.spec.name!r} replaces it"
            )
        accumulation, devices = args.gradient_accumulation_steps, args.world_size * max(1, args.n_gpu)
        if self.weight is not None and (accumulation > 1 or devices > 1):
            raise ValueError(
                "weight of compute_loss_func needs one micro-batch on one device for each step, got "
                f"gradient_accumulation_steps={accumulation} and {devices} device(s): the stock Trainer does not sum the "
                "class weights of a whole batch. Use MaxSupTrainer with class_weights, which does"
            )
        self.has_begun = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress = min(1.0, state.global_step / max(1, state.max_steps))

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | float | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if labels is None:
            raise ValueError("labels is None: the loss needs labels in every batch, named 'labels'")
        if self.shifts_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        labels = labels.to(logits.device)
        if labels.is_floating_point() and num_items_in_batch is not None:
            # The stock Trainer counts every element of labels: here the K probabilities of each row.
            num_items_in_batch = num_items_in_batch / labels.shape[-1]
        if not self.model.training:
            return self.plain(logits, labels, num_items_in_batch=num_items_in_batch, ignore_index=IGNORE_INDEX)
        if self.progress is None:
            raise ValueError(
                f"the parameters of loss {self.loss.spec.name!r} change over training ({self.loss.extra_repr()}), whose "
                "progress is unknown: pass the same object as a callback too, Trainer(compute_loss_func=f, callbacks=[f]), "
                "or set alpha_end=None"
            )
        if self.weight is None:
            return self.loss(logits, labels, self.progress, num_items_in_batch, ignore_index=IGNORE_INDEX)
        if not self.has_begun:
            raise ValueError(
                "weight of compute_loss_func needs to know how batches are split: pass the same object as a callback too, "
                "Trainer(compute_loss_func=f, callbacks=[f])"
            )
        self.weight = self.weight.to(logits.device)
        # The step is this one micro-batch, so the sums are divided by its own rows and weights, not by num_items_in_batch.
        return self.loss(logits, labels, self.progress, weight=self.weight, ignore_index=IGNORE_INDEX)


def compute_loss_func(name: str, *, model: nn.Module, weight: Any = None, **loss_kwargs: Any) -> ComputeLoss:
    """Create a registered loss for the stock `transformers.Trainer`.

    The stock Trainer does not pass the labels to the model, so anything that the model computes from them is lost: decoder
    inputs of encoder-decoders, a router's auxiliary loss, the upsampling of segmentation, the start and end pair of question
    answering. Supported are heads whose logits have one row for each label: classification of sequences, images and tokens,
    and causal (shifted here) and masked language models. `MaxSupTrainer` supports the others too.

    Args:
        name: registered name of the loss.
        model: the model that is trained. Determines whether labels are shifted. In evaluation mode the loss is plain
            cross-entropy.
        weight: class weights, as a (K,) tensor, a list, or a mapping from the class names of the model's config. Evaluation
            is not weighted. They require one micro-batch on one device for each step, so pass the returned object in
            `callbacks` too, where it checks that. Default `None`.
        **loss_kwargs: as for `create_loss`. If a parameter changes over training, pass the returned object in `callbacks`
            too.

    Returns:
        A callable (outputs, labels, num_items_in_batch=None) -> 0-dim loss, which is also a `TrainerCallback`.

    Raises:
        ValueError, TypeError: unknown loss or parameters, a regression or multi-label head, or weights that do not fit it.

    Example:
        >>> from tempfile import mkdtemp
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        >>> from maxsup_hf import compute_loss_func
        >>> model = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        >>> f = compute_loss_func("maxsup", model=model)
        >>> trainer = Trainer(model, TrainingArguments(mkdtemp()), compute_loss_func=f, callbacks=[f])
        >>> trainer.compute_loss_func.loss.values(1.0)
        {'alpha': 0.2}
    """
    return ComputeLoss(name, model, weight, **loss_kwargs)
