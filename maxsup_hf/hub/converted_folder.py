"""Save a converted model with the image processor and the card that make it usable by itself."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Template
from transformers import BitImageProcessorPil, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from maxsup_hf.losses.maxsup import CITATION


def save_converted(model: PreTrainedModel, folder: str | Path, architecture: str) -> None:
    """Save the model, its image processor and, unless the folder has one, a README."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    image_processor(model, architecture).save_pretrained(folder)
    card = folder / "README.md"
    if not card.exists():
        card.write_text(_card(model, folder, architecture), encoding="utf-8")


def image_processor(model: PreTrainedModel, architecture: str) -> Any:
    """The preparation of images in the authors' evaluation, in the implementation that does not need torchvision."""
    resized, size = _sizes(model)
    bicubic = architecture.startswith("deit")
    return BitImageProcessorPil(
        size={"shortest_edge": resized},
        crop_size={"height": size, "width": size},
        resample=PILImageResampling.BICUBIC if bicubic else PILImageResampling.BILINEAR,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def _sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Shorter edge that images are resized to, and edge of the crop. The crop is 7/8 of the image everywhere; the authors'
    code with BlurPool evaluates at 256 pixels, the others at 224."""
    return (293, 256) if _has_blurpool(model) else (256, 224)


def _has_blurpool(model: PreTrainedModel) -> bool:
    return model.config.model_type == "blurpool_resnet"


def _card(model: PreTrainedModel, folder: Path, architecture: str) -> str:
    resized, size = _sizes(model)
    template = Template(files("maxsup_hf.hub").joinpath("converted.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        architecture=architecture,
        blurpool=_has_blurpool(model),
        classes=model.config.num_labels,
        parameters=f"{model.num_parameters():,}",
        name=folder.resolve().name,
        resized=resized,
        size=size,
        citation=CITATION,
    )
