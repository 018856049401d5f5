"""EfficientNet-Lite0 as a `PreTrainedModel`: a pretrained network of another package. See networks.py for a network of
our own, and derived.py for the folder that training begins with."""

from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class EfficientNetLiteConfig(PretrainedConfig):
    """EfficientNet-Lite0 of the package `efficientnet-lite-pytorch`. transformers' EfficientNet always has
    squeeze-and-excitation, which Lite networks do not have."""

    model_type = "efficientnet_lite"

    def __init__(self, image_size: int = 96, **kwargs: Any):
        super().__init__(**kwargs)
        self.image_size = image_size


class EfficientNetLiteForImageClassification(PreTrainedModel):
    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.backbone = EfficientNet.from_name("efficientnet-lite0", image_size=config.image_size)
        self.classifier = nn.Linear(self.backbone._fc.in_features, config.num_labels)
        self.backbone._fc = nn.Identity()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        pixels = pixel_values.contiguous(memory_format=torch.channels_last)
        features = self.backbone._dropout(self.backbone.extract_features(pixels).mean((2, 3)))
        logits = self.classifier(features)
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)
