"""The authors' networks written out in torch, with random weights: the oracle of the converter."""

import torch
from torch import nn
from torch.nn import functional as F


class Blurred(nn.Module):
    """A strided convolution behind a blur, with the names of the authors' code: `conv` and `blur_filter`."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        taps = torch.tensor([1.0, 2.0, 1.0])
        kernel = taps[:, None] * taps / 16
        self.register_buffer("blur_filter", kernel.repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x):
        height, width = x.shape[-2:]
        padded, kernel = F.pad(x, (1, 1, 1, 1)), self.blur_filter[0, 0]
        shifted = (padded[..., i : i + height, j : j + width] * kernel[i, j] for i in range(3) for j in range(3))
        return self.conv(sum(shifted))


class Basic(nn.Module):
    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inside != width:
            self.downsample = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inside != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(inside, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """The names and arithmetic of torchvision."""

    def __init__(self, classes=1000, block=Bottleneck, depths=(3, 4, 6, 3), blur=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inside, times = 64, 4 if block is Bottleneck else 1
        for i, (width, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), 1):
            blocks = []
            for j in range(depth):
                blocks.append(block(inside, width, 2 if i > 1 and j == 0 else 1))
                inside = times * width
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
            if blur and i > 1:
                strided = "conv2" if block is Bottleneck else "conv1"
                setattr(blocks[0], strided, Blurred(getattr(blocks[0], strided)))
                blocks[0].downsample[0] = Blurred(blocks[0].downsample[0])
        self.fc = nn.Linear(inside, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, dim=384, heads=6):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5).softmax(-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).reshape(n, t, d))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class DeitSmall(nn.Module):
    """The names and arithmetic of timm."""

    def __init__(self, classes=1000):
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 384)), nn.Parameter(torch.randn(1, 197, 384))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 384, 16, 16)})
        self.blocks = nn.Sequential(*(Block() for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(384, eps=1e-6), nn.Linear(384, classes)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


SOURCES = {
    "resnet50": ResNet,
    "deit_small": DeitSmall,
    "resnet18": lambda classes=1000, blur=False: ResNet(classes, Basic, (2, 2, 2, 2), blur),
    "resnet101": lambda classes=1000, blur=False: ResNet(classes, Bottleneck, (3, 4, 23, 3), blur),
}


def random(architecture, classes=1000, **kwargs):
    torch.manual_seed(0)
    model = SOURCES[architecture](classes, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2), module.weight.data.uniform_(0.2, 0.5)
    return model.eval()
