"""Random augmentation of images, by kornia. It draws from torch's generator, which `SeededFetching` seeds for each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

AUGMENTATIONS = ("none", "crop_flip", "randaugment")
OPERATIONS, MAGNITUDE = 2, 10  # of RandAugment: how many an image gets, and how strong they are (0 to 30)


class Augmentation:
    """Augment the images of a training batch: `pixels = Augmentation("crop_flip", mean, std)(pixels)`.

    `crop_flip` pads each image by an eighth of its size, crops it at random to its own size, and flips half of them
    horizontally. `randaugment` also applies two random operations to each image (RandAugment, arXiv 1909.13719).

    Args:
        name: one of `AUGMENTATIONS`.
        mean, std: per channel, as the image processor normalised the images; `None` where it did not. RandAugment needs the
            colours that a person sees.
        random_erasing: share of the images of which a random rectangle is set to the mean colour (arXiv 1708.04896).

    Raises:
        ValueError: an unknown name, or a share outside [0, 1].
    """

    def __init__(
        self,
        name: str,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        random_erasing: float = 0.0,
    ):
        if name not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {name!r}")
        if not 0 <= random_erasing <= 1:
            raise ValueError(f"random_erasing must be a share between 0 and 1, got {random_erasing}")
        self.name, self.random_erasing = name, random_erasing
        self.mean, self.std = (None if given is None else torch.tensor(given).view(-1, 1, 1) for given in (mean, std))
        self._made: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}

    def __bool__(self) -> bool:
        return self.name != "none" or self.random_erasing > 0

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) floating -> the same shape and dtype."""
        if not self:
            return pixels
        size = (pixels.shape[-2], pixels.shape[-1])
        if size not in self._made:
            self._made[size] = self._make(size)
        return self._made[size](pixels)

    def _make(self, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        # kornia takes a moment to import, and a run without augmentation does not need it
        from kornia.augmentation import RandomCrop, RandomErasing, RandomHorizontalFlip

        steps: list[Callable[[Tensor], Tensor]] = []
        if self.name != "none":
            across, down = max(1, size[1] // 8), max(1, size[0] // 8)
            padding = (across, across, down, down)  # left, right, top, bottom
            steps += [RandomCrop(size, padding, padding_mode="reflect"), RandomHorizontalFlip()]
        if self.name == "randaugment":
            steps.append(self._randaugment())
        if self.random_erasing:
            steps.append(RandomErasing(p=self.random_erasing, value=0.0))
        return lambda pixels: _in_turn(steps, pixels)

    def _randaugment(self) -> Callable[[Tensor], Tensor]:
        from kornia.augmentation.auto import RandAugment

        policy: nn.Module = RandAugment(OPERATIONS, MAGNITUDE)

        def augment(pixels: Tensor) -> Tensor:
            mean, std = (self.mean, self.std) if self.mean is not None and self.std is not None else (0.0, 1.0)
            colours = (pixels * std + mean).clamp(0, 1)
            # one image at a time: for a batch kornia draws the operations once
            return (torch.cat([policy(image[None]) for image in colours]) - mean) / std

        return augment


def _in_turn(steps: Sequence[Callable[[Tensor], Tensor]], pixels: Tensor) -> Tensor:
    for step in steps:
        pixels = step(pixels)
    return pixels
