"""Where an image classifier looked, by captum: Grad-CAM on the last feature map of a convolutional network (Selvaraju et al.
2017, arXiv 1610.02391), gradient × activation on the last tokens of a transformer. No attention weights are used."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOST_PREFIX = 16  # tokens that are no part of the image: class, distillation, registers


class Attribution(NamedTuple):
    """Maps of several images.

    Attributes:
        maps: (N, h, w), not negative.
        layer: dotted path of the layer that they are of.
        method: what was computed there.
    """

    maps: Tensor
    layer: str
    method: str


def attribute(model: nn.Module, inputs: Mapping[str, Any], targets: Tensor) -> Attribution | None:
    """How much each place of an image says for a class.

    The layer is the last one with several places that the logit depends on: for a network that pools a feature map, that
    map; for a transformer that reads its class token, the last normalisation before its last attention.

    Args:
        model: image classifier with `logits` in its output.
        inputs: `pixel_values` (N, C, H, W), and whatever else the model takes.
        targets: (N,) classes.

    Returns:
        The maps, or `None` where no layer has a feature map or tokens in the shape of the image.

    Raises:
        ImportError: captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam, LayerGradientXActivation
    except ImportError as error:
        raise ImportError("Grad-CAM needs captum: pip install 'maxsup-hf[analysis]'") from error

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
    """The layer, and the grid of its tokens, `None` for a feature map (N, C, h, w)."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, args: Any, made: Any) -> None:
        if not isinstance(made, Tensor) or len(made) != len(pixels) or isinstance(module, nn.Dropout):
            return
        # Of tokens only normalisations: queries, keys and values each carry a part of what goes on.
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
        places = gradient.flatten(2).abs().sum(1) if grid is None else gradient.abs().sum(-1)[:, -grid[0] * grid[1] :]
        if int((places.sum(0) > 0).sum()) > 1:
            return module, grid
    return None


def _grid(tokens: int, image: torch.Size) -> tuple[int, int] | None:
    """Height and width of the tokens that are places, in the image's proportions; the first few may be something else."""
    height, width = image[-2:]
    for prefix in range(min(MOST_PREFIX, tokens)):
        rows = round(((tokens - prefix) * height / width) ** 0.5)
        columns = round(rows * width / height)
        if rows * columns == tokens - prefix > 1:
            return rows, columns
    return None
