"""Class votes of the positions of an image model's last feature map (dense mode of Zipf label smoothing)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Votes:
    """Keeps the last feature map of a classifier's base model, and classifies each of its positions.

    Source: arXiv 2207.12980, Sec. 3.2. The feature map is the base model's `last_hidden_state`: (N, C, H, W) of a
    convolutional network, or (N, T, C) of a transformer, including its class token.

    Raises:
        ValueError: the model has no base model with a feature map, or its classification layer cannot be applied to single
            positions.
    """

    def __init__(self, model: nn.Module):
        self.name = type(model).__name__
        base, classifier = getattr(model, "base_model", model), getattr(model, "classifier", None)
        if (
            getattr(model, "main_input_name", None) != "pixel_values"
            or base is model
            or not isinstance(classifier, nn.Module)
        ):
            raise ValueError(self._problem("it is not an image classifier with a base model and a layer named `classifier`"))
        self.classifier = classifier
        self.features: Tensor | None = None
        self._hook = base.register_forward_hook(self._keep)

    def remove(self) -> None:
        """Remove the hook from the model, and free the last feature map."""
        self._hook.remove()
        self.features = None

    def _problem(self, reason: str) -> str:
        return (
            f"dense=True lets each position of the last feature map vote, which {self.name} does not allow: {reason}; set "
            "dense=False"
        )

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self.features = output["last_hidden_state"] if isinstance(output, dict) else output[0]

    @torch.no_grad()
    def __call__(self, num_classes: int) -> Tensor:
        """Votes of the last forward: (N, P) class indices in [0, num_classes)."""
        features, self.features = self.features, None
        if features is None or features.ndim not in (3, 4):
            raise ValueError(self._problem("its base model returns no feature map"))
        positions = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        try:
            logits = self.classifier(positions.flatten(0, 1))
        except RuntimeError as error:
            raise ValueError(self._problem(f"its classifier does not accept a single position ({error})")) from None
        if logits.shape[-1] != num_classes:
            raise ValueError(self._problem(f"its classifier has {logits.shape[-1]} classes, the loss has {num_classes}"))
        return logits.argmax(-1).reshape(positions.shape[:2])
