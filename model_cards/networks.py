"""A network that transformers does not have, as a small `PreTrainedModel`: an example of bringing your own.

It has a config and a model that returns `ImageClassifierOutput`, so that the Trainer, `compare` and `analyze` work with
it as with any other model. `write_network` of derived.py saves a folder with this file and a config, which
`maxsup-hf train image-classification --config_name FOLDER --trust_remote_code true` trains. transformers asks for every
package that such a file imports, so a network with packages of its own has a file of its own: efficientnet_lite.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
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
