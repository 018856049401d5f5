"""Penultimate features and logits of any classification head, without code for any one model.

The classifier is the last linear or convolutional layer whose output is the logits: it is found by running a batch and
looking. What goes into it are the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LABEL_KEYS = ("labels", "label", "soft_labels")


class FeatureRows(NamedTuple):
    """One batch: float32 on the CPU.

    Attributes:
        features: (N, D), what the classifier got.
        logits: (N, K), what it made of them.
        labels: (N,) int64.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Classifier:
    """The last layer of a model.

    Attributes:
        name: dotted path in the model.
        module: `nn.Linear` or `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d` with kernels of one position.
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """(K, D) float32 on the CPU: a template for each class."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.detach().float().cpu().flatten(1)


def find_classifier(model: nn.Module, inputs: Mapping[str, Any]) -> Classifier:
    """The layer whose output is the model's logits.

    Args:
        model: with `logits` (N, K) in its output.
        inputs: of one small batch.

    Raises:
        ValueError: the model gives no logits (N, K), or no single linear or convolutional layer makes them.
    """
    layers = {layer: name for name, layer in model.named_modules() if _is_linear(layer)}
    with _watch(list(layers)) as calls:
        logits = forward(model, inputs)
    for layer, given, made in reversed(calls):
        if _select(given, made, logits) is not None:
            return Classifier(layers[layer], layer)
    raise ValueError(
        f"{type(model).__name__} has no classifier layer that could be found: none of its {len(layers)} linear and "
        f"convolutional layers gives its logits {tuple(logits.shape)} as they are. Adapters must be merged first "
        "(merge_and_unload), and a model that averages or scales the logits of several heads has no one layer to look at"
    )


def extract(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], classifier: Classifier | None = None
) -> Iterator[FeatureRows]:
    """Features and logits, batch by batch.

    Args:
        model: in evaluation mode while a batch runs; its mode is restored.
        batches: inputs of the model with `labels` (N,), on any device.
        classifier: from `find_classifier`. Default: found with the first batch.

    Raises:
        ValueError: as in `find_classifier`; a batch without integer labels (N,); features or logits that are NaN or
            infinite, at the first batch that has any.
    """
    row = 0
    for batch in batches:
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            what = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"keys {list(batch)}"
            raise ValueError(f"every batch needs integer labels (N,), one class for each row, got {what}")
        if classifier is None:
            classifier = find_classifier(model, batch)
        with _watch([classifier.module]) as calls:
            logits = forward(model, batch)
        found = (_select(given, made, logits) for _, given, made in reversed(calls))
        features = next((x for x in found if x is not None), None)
        if features is None:
            raise ValueError(f"{classifier.name!r} does not give the logits of rows {row} to {row + len(labels) - 1}")
        for name, values in (("features", features), ("logits", logits)):
            broken = ~values.isfinite().all(1)
            if broken.any():
                first = row + int(broken.nonzero()[0])
                raise ValueError(f"{name} are NaN or infinite, first in row {first}: has the model diverged?")
        yield FeatureRows(features.float().cpu(), logits.float().cpu(), labels.cpu().long())
        row += len(labels)


@torch.no_grad()
def forward(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Logits (N, K) of a batch, in evaluation mode and without labels.

    Raises:
        ValueError: the output has no logits of that shape.
    """
    device = next(model.parameters()).device
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items() if k not in LABEL_KEYS}
    training = model.training
    model.eval()
    try:
        output = model(**given)
    finally:
        model.train(training)
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(output).__name__} without logits"
        raise ValueError(f"{type(model).__name__} is not a classifier of rows: expected logits (N, K), got {what}")
    return logits


def _is_linear(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and set(layer.kernel_size) == {1} and layer.groups == 1


@contextmanager
def _watch(layers: list[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """What these layers get and give while the context is open, in order."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(layer: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(made, Tensor):
            calls.append((layer, args[0].detach(), made.detach()))

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _select(given: Tensor, made: Tensor, logits: Tensor) -> Tensor | None:
    """The features (N, D) that a layer made the logits of, or `None` where it did not make them.

    A layer may see several positions of a row: then the logits are those of one of them (decoders: the last token), or
    their mean, which is the layer's output for the mean of what it got.
    """
    rows, classes = logits.shape
    if made.ndim > 2 and made.shape[1] == classes and given.ndim == made.ndim and made.shape[-1] != classes:
        given, made = given.movedim(1, -1), made.movedim(1, -1)  # of a convolution: channels last
    elif made.ndim > 2 and made.shape[-1] != classes:
        return None
    if made.ndim < 2 or len(made) != rows or made.shape[-1] != classes:
        return None
    x, z = given.reshape(rows, -1, given.shape[-1]), made.reshape(rows, -1, classes)
    if z.shape[1] == 1:
        return x[:, 0] if _same(z[:, 0], logits) else None
    if _same(z.float().mean(1), logits):
        return x.float().mean(1)
    away = (z.float() - logits.float()[:, None]).abs().amax(-1)
    position = away.argmin(1)
    each = torch.arange(rows, device=position.device)
    return x[each, position] if _same(z[each, position], logits) else None


def _same(made: Tensor, logits: Tensor) -> bool:
    tolerance = 1e-5 if min(torch.finfo(made.dtype).bits, torch.finfo(logits.dtype).bits) > 16 else 1e-2
    return torch.allclose(made.float(), logits.float(), rtol=tolerance, atol=tolerance, equal_nan=True)
