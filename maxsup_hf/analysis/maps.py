"""The section of the report on attribution maps: which rows are shown, and the maps over their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maxsup_hf.analysis import model_figures, style
from maxsup_hf.analysis.attribution import Attribution, attribute
from maxsup_hf.analysis.measure import Measured
from maxsup_hf.analysis.photos import place_in_photo
from maxsup_hf.analysis.report import Picture, Section, file_name
from maxsup_hf.analysis.seen import Seen
from maxsup_hf.trainer.features import forward

Place = tuple[float, float, float, float]

MAPS = (
    "The brighter a place, the more it contributed to the predicted class. Images that a model got wrong come first, the "
    "most confident one at the top; then images that all models got right."
)


@dataclass(frozen=True)
class Maps:
    """Attributed images: `rows` of the data, a batch of them for each model, and each model's maps."""

    rows: Sequence[int]
    batches: Sequence[Mapping[str, Any]]
    found: Sequence[Attribution | None]


def attribute_images(seen: Sequence[Seen], count: int) -> Maps:
    rows = choose_rows([each.measured for each in seen], count)
    batches = [each.subject.collate([each.subject.dataset[i] for i in rows]) for each in seen if rows]
    if not rows or not all("pixel_values" in batch for batch in batches):
        return Maps([], [], [])
    found = []
    for each, batch in zip(seen, batches, strict=True):
        found.append(attribute(each.subject.model, batch, forward(each.subject.model, batch).argmax(1)))
    return Maps(rows, batches, found)


def maps_section(seen: Sequence[Seen], maps: Maps, classes: Sequence[str], folder: Path) -> Section:
    text = _describe_maps(seen, maps.found)
    pictures = []
    for k, row in enumerate(maps.rows):
        label = classes[seen[0].measured.labels[row]]
        for image, group, places in _by_image(seen, maps, k):
            predictions, heats = [], []
            for i in group:
                m, found = seen[i].measured, maps.found[i]
                confidence = f"{100 * m.confidence[row]:.0f} %"
                predictions.append(f"{seen[i].subject.name}:\n{classes[m.predicted[row]]}, {confidence}")
                heats.append(None if found is None else found.maps[k].numpy())
            name = f"map-{k + 1}"
            if len(group) < len(seen):
                name += f"-{file_name(group[0], seen[group[0]].subject.name)}"
            drawn = model_figures.heat_panels(image, heats, [f"{label} (row {row})", *predictions], places)
            caption = f"Row {row}, label {label}: {'; '.join(predictions)}"
            pictures.append(Picture(style.save(drawn, folder, name), caption, photo=True))
    return Section("Where the models looked", [MAPS, *text], figures=pictures)


def _describe_maps(seen: Sequence[Seen], found: Sequence[Attribution | None]) -> list[str]:
    """What the maps are, a line for all models of which it is the same."""
    names: dict[str, list[str]] = {}
    for each, attribution in zip(seen, found, strict=False):
        names.setdefault(_describe_map(attribution), []).append(each.subject.name)
    return [f"{', '.join(of)}: {text}" for text, of in names.items()]


def _describe_map(found: Attribution | None) -> str:
    if found is None:
        return "no layer has a map laid out like the image."
    height, width = found.maps.shape[1:]
    return f"{found.method} of {found.layer}, {height} × {width} places."


def _by_image(
    seen: Sequence[Seen], maps: Maps, k: int
) -> Iterator[tuple[NDArray[np.float64], list[int], list[Place | None]]]:
    """Image k as (H, W, 3) in [0, 1], the models whose maps are drawn over it, and where in it each map lies.

    It is the image as the data have it, if that is known of all models. Otherwise it is what the model is given, which
    some may crop, or take in a different size; then there is an image for each group of models that are given the same.
    """
    photos = [each.subject.photos for each in seen]
    known = [each for each in photos if each is not None]
    if len(known) == len(seen):
        image = known[0].load(maps.rows[k])
        places: list[Place | None] = [place_in_photo(each, maps.rows[k]) for each in known]
        yield image, list(range(len(seen))), places
        return
    groups: list[tuple[NDArray[np.float64], list[int]]] = []
    for i, (each, batch) in enumerate(zip(seen, maps.batches, strict=True)):
        image = _image(batch["pixel_values"][k], each.subject.pixel_scale)
        for other, group in groups:
            if other.shape == image.shape and np.allclose(other, image, atol=1e-3):
                group.append(i)
                break
        else:
            groups.append((image, [i]))
    for image, group in groups:
        yield image, group, [None] * len(group)


def _image(pixels: torch.Tensor, scale: tuple[Sequence[float], Sequence[float]] | None) -> NDArray[np.float64]:
    image = pixels.detach().double().cpu().movedim(0, -1).numpy()
    if scale is None:  # the normalization is not known: stretch the image over the full range
        image = (image - image.min()) / max(float(np.ptp(image)), 1e-12)
    else:
        image = np.clip(image * np.asarray(scale[1]) + np.asarray(scale[0]), 0, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def choose_rows(measured: Sequence[Measured], count: int) -> list[int]:
    """Rows to show: half of them wrong for some model, the most confident first, then right ones of distinct classes.

    Args:
        measured: of each model, on the same rows.
        count: number of rows. More are wrong if too few are right; there are fewer if rows or classes run out.
    """
    right: NDArray[np.bool_] = np.logical_and.reduce([m.right for m in measured])
    order = np.argsort(-np.mean([m.confidence for m in measured], axis=0), kind="stable")
    wrong = [int(i) for i in order[~right[order]]]
    first_of_class: dict[int, int] = {}
    for i in order[right[order]]:
        first_of_class.setdefault(int(measured[0].labels[i]), int(i))
    shown_right = list(first_of_class.values())[: count - min(len(wrong), count // 2)]
    return wrong[: count - len(shown_right)] + shown_right
