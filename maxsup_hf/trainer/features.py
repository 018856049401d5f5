"""Penultimate features and logits of any classification head, without model-specific code.

The classifier is the last linear or convolutional layer whose output is the logits. It is found by running a batch and
comparing outputs. Its inputs are the features.
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
        features: (N, D), inputs of the classifier.
        logits: (N, K), its outputs.
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
        """(K, D) float32 on the CPU: the weight vector of each class."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.detach().float().cpu().flatten(1)


def find_classifier(model: nn.Module, inputs: Mapping[str, Any]) -> Classifier:
    """The layer whose output is the model's logits.

    Args:
        model: a model whose output has `logits` (N, K).
        inputs: of one small batch.

    Raises:
        ValueError: the model returns no logits (N, K), or no single linear or convolutional layer computes them.
    """
    layers = {layer: name for name, layer in model.named_modules() if _is_linear(layer)}
    with _watch(list(layers)) as calls:
        logits = forward(model, inputs)
    for layer, layer_input, output in reversed(calls):
        if _features(layer_input, output, logits) is not None:
            return Classifier(layers[layer], layer)
    raise ValueError(
        f"{type(model).__name__} has no classifier layer that could be found: none of its {len(layers)} linear and "
        f"convolutional layers returns exactly its logits {tuple(logits.shape)}. Merge adapters first (merge_and_unload); "
        "models that average or scale the logits of several heads are not supported"
    )


def extract(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], classifier: Classifier | None = None
) -> Iterator[FeatureRows]:
    """Yield features and logits batch by batch.

    Args:
        model: put into evaluation mode while a batch runs, and then back.
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
        candidates = (_features(layer_input, output, logits) for _, layer_input, output in reversed(calls))
        features = next((x for x in candidates if x is not None), None)
        if features is None:
            raise ValueError(f"{classifier.name!r} does not return the logits of rows {row} to {row + len(labels) - 1}")
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
    """(layer, input, output) of each call of these layers while the context is open."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append((layer, args[0].detach(), output.detach()))

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _features(layer_input: Tensor, output: Tensor, logits: Tensor) -> Tensor | None:
    """The features (N, D) from which a layer computed the logits, or `None` if it did not compute them.

    A layer may be applied to several positions of a row. Then the logits are its output at one of them (decoders: the last
    token), or the mean over all, which equals the layer's output for the mean of its inputs.
    """
    rows, classes = logits.shape
    is_channels_first = layer_input.ndim == output.ndim > 2 and output.shape[1] == classes != output.shape[-1]
    if is_channels_first:  # a convolution
        layer_input, output = layer_input.movedim(1, -1), output.movedim(1, -1)
    if output.ndim < 2 or len(output) != rows or output.shape[-1] != classes:
        return None
    x, z = layer_input.reshape(rows, -1, layer_input.shape[-1]), output.reshape(rows, -1, classes)
    if z.shape[1] == 1:
        return x[:, 0] if _is_close(z[:, 0], logits) else None
    if _is_close(z.float().mean(1), logits):
        return x.float().mean(1)
    distance = (z.float() - logits.float()[:, None]).abs().amax(-1)
    nearest, every_row = distance.argmin(1), torch.arange(rows, device=z.device)
    return x[every_row, nearest] if _is_close(z[every_row, nearest], logits) else None


def _is_close(output: Tensor, logits: Tensor) -> bool:
    is_half_precision = min(torch.finfo(output.dtype).bits, torch.finfo(logits.dtype).bits) <= 16
    tolerance = 1e-2 if is_half_precision else 1e-5
    return torch.allclose(output.float(), logits.float(), rtol=tolerance, atol=tolerance, equal_nan=True)
