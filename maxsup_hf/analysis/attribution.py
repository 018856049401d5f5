"""Attribution maps of image classifiers, computed by captum.

For a convolutional network: Grad-CAM on its last feature map (Selvaraju et al. 2017, arXiv 1610.02391); for a transformer:
gradient × activation of its last tokens. Attention weights are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOST_PREFIX = 16  # greatest number of tokens before those of the image: class, distillation, registers


class Attribution(NamedTuple):
    """Maps of several images.

    Attributes:
        maps: (N, h, w), at least 0.
        layer: dotted path of the layer whose output they are computed from.
        method: `"Grad-CAM"` or `"gradient × activation"`.
    """

    maps: Tensor
    layer: str
    method: str


def attribute(model: nn.Module, inputs: Mapping[str, Any], targets: Tensor) -> Attribution | None:
    """How much each place of an image contributes to the logit of a class.

    The layer is the last one of which the logit depends on several places: for a network that pools a feature map, that
    map; for a transformer that reads its class token, the last normalization before its last attention.

    Args:
        model: image classifier with `logits` in its output.
        inputs: `pixel_values` (N, C, H, W), and other inputs of the model.
        targets: (N,) classes.

    Returns:
        The maps, or `None` if no layer has a feature map, or tokens laid out like the image.

    Raises:
        ImportError: captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam, LayerGradientXActivation
    except ImportError as error:
        raise ImportError("Grad-CAM needs captum: pip install captum") from error

    device = next(model.parameters()).device
    given = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in inputs.items() if key != "labels"}
    pixels, targets = given.pop("pixel_values"), targets.to(device)

    def logits(pixel_values: Tensor) -> Tensor:
        return model(pixel_values=pixel_values, **given).logits

    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            found = _find_layer(model, logits, pixels, targets)
            if found is None:
                return None
            layer, grid = found
            name = next(name for name, module in model.named_modules() if module is layer)
            if grid is None:
                maps = LayerGradCam(logits, layer).attribute(pixels, target=targets, relu_attributions=True)[:, 0]
                return Attribution(maps.detach().float().cpu(), name, "Grad-CAM")
            tokens = LayerGradientXActivation(logits, layer).attribute(pixels, target=targets).sum(-1).relu()
            maps = tokens[:, -grid[0] * grid[1] :].reshape(-1, *grid)
            return Attribution(maps.detach().float().cpu(), name, "gradient × activation")
    finally:
        model.train(training)


def _find_layer(
    model: nn.Module, logits: Any, pixels: Tensor, targets: Tensor
) -> tuple[nn.Module, tuple[int, int] | None] | None:
    """The layer, and the grid of its tokens; `None` as the grid for a feature map (N, C, h, w)."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, args: Any, made: Any) -> None:
        if not isinstance(made, Tensor) or len(made) != len(pixels) or isinstance(module, nn.Dropout):
            return
        # Of layers with tokens only normalizations: queries, keys and values each carry only a part of the signal.
        is_tokens = made.ndim == 3 and "Norm" in type(module).__name__
        if is_tokens or (made.ndim == 4 and min(made.shape[2:]) > 1):
            calls.append((module, made))

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_hook(keep).remove)
        scores = logits(pixels.detach().requires_grad_()).gather(1, targets[:, None]).sum()
    if not calls:
        return None
    gradients = torch.autograd.grad(scores, [made for _, made in calls], allow_unused=True)
    for (module, made), gradient in zip(reversed(calls), reversed(gradients), strict=True):
        grid = _grid(made.shape[1], pixels.shape) if made.ndim == 3 else None
        if gradient is None or (made.ndim == 3 and grid is None):
            continue
        if grid is None:
            influence = gradient.flatten(2).abs().sum(1)
        else:
            influence = gradient.abs().sum(-1)[:, -grid[0] * grid[1] :]
        # After pooling, or in the last attention of a class token, the logit depends on a single place.
        if int((influence.sum(0) > 0).sum()) > 1:
            return module, grid
    return None


def _grid(tokens: int, image: torch.Size) -> tuple[int, int] | None:
    """Height and width of the grid of image tokens, in the image's proportions. The first few tokens may be special ones."""
    height, width = image[-2:]
    for prefix in range(min(MOST_PREFIX, tokens)):
        rows = round(((tokens - prefix) * height / width) ** 0.5)
        columns = round(rows * width / height)
        if rows * columns == tokens - prefix > 1:
            return rows, columns
    return None
