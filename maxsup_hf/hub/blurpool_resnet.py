"""The ResNet of the MaxSup authors' ImageNet code: a 3×3 blur before each strided convolution (BlurPool).

This file is saved beside the converted weights, and transformers runs it where a model is loaded with
`trust_remote_code=True`. It imports nothing but torch and transformers.

No architecture of transformers holds these weights. Its ResNet has no blur. timm's, which `TimmWrapperModel` loads, blurs
after a convolution of stride 1, not before a strided one. Nor can the blur be merged into the convolution: what it spreads
beyond the image is cut off before a 3×3 convolution pads with zeros, so a merged 5×5 kernel differs at the borders.
"""

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification


def blur_kernel() -> Tensor:
    """(3, 3), the outer product of (1, 2, 1) / 4 with itself."""
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    return torch.outer(line, line)


def is_blurred(module: nn.Module) -> bool:
    """Whether the authors' code blurs a module's input: of every strided convolution but the first, which reads pixels."""
    return isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= 16


def _blur(module: nn.Conv2d, inputs: tuple[Tensor]) -> Tensor:
    (x,) = inputs
    kernel = blur_kernel().to(x).expand(module.in_channels, 1, 3, 3)
    return nn.functional.conv2d(x, kernel, padding=1, groups=module.in_channels)


class BlurPoolResNetConfig(ResNetConfig):
    # A type of its own: under `resnet`, transformers without `trust_remote_code` would load the weights into its own ResNet,
    # which has the same parameters, and compute other logits without a warning.
    model_type = "blurpool_resnet"


class BlurPoolResNetForImageClassification(ResNetForImageClassification):
    config_class = BlurPoolResNetConfig

    def __init__(self, config: BlurPoolResNetConfig):
        super().__init__(config)
        for module in self.modules():
            if is_blurred(module):
                module.register_forward_pre_hook(_blur)


BlurPoolResNetConfig.register_for_auto_class()
BlurPoolResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
