"""Conversion of random weights in the authors' layouts, compared with the source architectures written out in torch."""

import os
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from maxsup_hf.hub.convert import convert, main, read_checkpoint


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


class ResNet50(nn.Module):
    """The names and arithmetic of torchvision."""

    def __init__(self, classes=1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inside = 64
        for i, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
            blocks = [Bottleneck(inside if j == 0 else 4 * width, width, 2 if i > 1 and j == 0 else 1) for j in range(depth)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
            inside = 4 * width
        self.fc = nn.Linear(2048, classes)

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


SOURCES = {"resnet50": ResNet50, "deit_small": DeitSmall}


def random(architecture, classes=1000):
    torch.manual_seed(0)
    model = SOURCES[architecture](classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2), module.weight.data.uniform_(0.2, 0.5)
    return model.eval()


@pytest.mark.parametrize("architecture", SOURCES)
def test_logits_are_those_of_the_source(architecture, tmp_path, capsys):
    source = random(architecture)
    torch.save({"model": {f"module.{k}": v for k, v in source.state_dict().items()}, "epoch": 90}, tmp_path / "weights.pt")
    main([str(tmp_path / "weights.pt"), str(tmp_path / "out"), "--architecture", architecture])
    assert "saved to" in capsys.readouterr().out
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, source(pixels), rtol=1e-5, atol=1e-5)
    assert (model.config.id2label[0], model.config.id2label[999], len(model.config.id2label)) == (
        "tench",
        "toilet paper",
        1000,
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_other_class_counts_and_names():
    weights = random("deit_small", 5).state_dict()
    assert convert(weights, "deit_small").config.num_labels == 5
    assert convert(weights, "deit_small", id2label=dict(enumerate("abcde"))).config.id2label[4] == "e"
    with pytest.raises(ValueError, match="id2label must name the classes 0 to 4, got 2 names"):
        convert(weights, "deit_small", id2label={0: "a", 1: "b"})


def test_wrong_or_partial_weights_are_listed():
    weights = random("deit_small", 5).state_dict()
    with pytest.raises(ValueError, match="not a complete resnet50; missing: .*resnet.embedder.*; unknown: blocks.0.attn"):
        convert(weights, "resnet50", id2label=None)
    del weights["norm.bias"]
    weights["head.extra"] = torch.zeros(1)
    weights["pos_embed"] = torch.zeros(1, 50, 384)
    message = (
        r"missing: vit.layernorm.bias; unknown: classifier.extra; "
        r"of another shape: vit.embeddings.position_embeddings \(1, 50, 384\) instead of \(1, 197, 384\)"
    )
    with pytest.raises(ValueError, match=message):
        convert(weights, "deit_small")
    with pytest.raises(ValueError, match="architecture must be one of resnet50, deit_small, got 'vgg'"):
        convert(weights, "vgg")


def test_blur_pool_is_refused():
    with pytest.raises(ValueError, match="BlurPool convolutions .blur_filter., which no ResNet of transformers has"):
        convert({"layer1.0.conv2.blur_filter": torch.zeros(1)}, "resnet50")


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_pickle_with_code_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, "weights.pt")
    with pytest.raises(SystemExit) as stop:
        main(["weights.pt", "out", "--architecture", "resnet50"])
    assert stop.value.code == 2 and "loading it would run code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and isinstance(stop.value.__cause__.__cause__, pickle.UnpicklingError)


def test_a_file_without_weights_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="must hold a state dict"):
        read_checkpoint(tmp_path / "weights.pt")
