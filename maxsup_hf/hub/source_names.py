"""Names of tensors in torchvision's ResNets and timm's DeiT, and in transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

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


def renamed_to_transformers(weights: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The weights under their names in transformers; a name that no rule matches stays, and `convert` reports it."""
    is_resnet = architecture.startswith("resnet")
    if not is_resnet:
        weights = _split_qkv(weights)
    table = RESNET if is_resnet else DEIT
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
        if ".attn.qkv." in name and value.dim() and len(value) % 3 == 0:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{part}.")] = third
        else:
            split[name] = value
    return split
