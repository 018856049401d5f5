"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): mixed images and their soft labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import one_hot
from transformers import TrainerCallback, default_data_collator

PAIRINGS = ("flip", "roll")
MODES = ("batch", "pair", "elem")


def mix_targets(
    labels: Tensor, num_classes: int, lam: float | Tensor, *, pairing: str = "flip", smoothing: float = 0.0
) -> Tensor:
    """Class probabilities of a batch in which every example is mixed with a partner: λ·target + (1 − λ)·partner's target.

    Args:
        labels: (N,) integer class indices in [0, num_classes).
        num_classes: K.
        lam: λ in [0, 1], the share of an example's own target: one number, or (N,) one for each example.
        pairing: `"flip"` mixes example i with N−1−i (timm), `"roll"` with i−1 (torchvision's references).
        smoothing: label smoothing over all K classes, applied to the targets before mixing. Leave it at 0 if the loss
            regularises already.

    Returns:
        (N, num_classes) float32, rows summing to 1.

    Raises:
        ValueError: `lam` or `smoothing` outside [0, 1], or an unknown pairing.
    """
    lam = torch.as_tensor(lam, dtype=torch.float32, device=labels.device)
    if not ((lam >= 0) & (lam <= 1)).all():
        raise ValueError(f"lam must be in [0, 1], got {lam.tolist()!r}")
    _check_share("smoothing", smoothing)
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {', '.join(map(repr, PAIRINGS))}, got {pairing!r}")
    own = one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    partner = own.flip(0) if pairing == "flip" else own.roll(1, 0)
    return lam.reshape(-1, 1) * own + (1 - lam.reshape(-1, 1)) * partner


class MixupCollator(TrainerCallback):
    """A data collator that mixes each image with another of its batch, example i with N−1−i, and emits soft labels.

        MaxSupTrainer(..., data_collator=MixupCollator(num_classes=100, mixup_alpha=0.8, cutmix_alpha=1.0))

    `MaxSupTrainer` mixes in training only: evaluation and prediction see unmixed images and hard labels. With a stock
    Trainer, pass the collator as a callback, which applies it to the training data only, and let the soft labels replace
    the hard ones, with a loss that supports them:

        mixup = MixupCollator(num_classes=100, mixup_alpha=0.8, soft_labels_as="labels")
        loss = compute_loss_func("maxsup", model=model)
        Trainer(model, args, compute_loss_func=loss, callbacks=[loss, mixup], ...)

    Names, defaults and distributions follow timm's `Mixup`. Random numbers come from torch's generator, which the Trainer
    seeds and restores.

    Args:
        num_classes: K.
        mixup_alpha: λ of Mixup is drawn from Beta(α, α); 0 turns Mixup off. Default 1.
        cutmix_alpha: the same for CutMix, where λ is the share of the area outside the box. Default 0.
        prob: probability of mixing at all. Default 1.
        switch_prob: probability of CutMix if both are on. Default 0.5.
        mode: `"batch"` draws once for a batch, `"pair"` for each pair, `"elem"` for each example.
        label_smoothing: smoothing of the targets. Default 0, because the loss regularises.
        collator: makes the batch that is mixed. Default transformers' `default_data_collator`.
        transform: replaces all of the above: a function (images, labels) -> (images, soft labels), such as torchvision's
            `v2.MixUp`, `v2.CutMix` or a `v2.RandomChoice` of them.
        image_key: key of the images (N, ..., H, W) in a batch. Default `"pixel_values"`.
        soft_labels_as: key under which the soft labels (N, K), float32, are stored: `"soft_labels"` beside the integer
            `labels`, or `"labels"` in their place.

    Example:
        >>> import torch
        >>> from maxsup_hf import MixupCollator
        >>> rows = [{"pixel_values": torch.rand(3, 8, 8), "labels": label} for label in (0, 1)]
        >>> MixupCollator(num_classes=2)(rows)["soft_labels"].sum(dim=1)
        tensor([1., 1.])

    Raises:
        ValueError: an argument is out of range, or (when called) a batch has no images or no integer labels.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        label_smoothing: float = 0.0,
        *,
        collator: Callable[[list[Any]], dict[str, Any]] = default_data_collator,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        image_key: str = "pixel_values",
        soft_labels_as: str = "soft_labels",
    ):
        for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if not alpha >= 0:
                raise ValueError(f"{name} must be at least 0, got {alpha!r}")
        if transform is None and mixup_alpha == cutmix_alpha == 0:
            raise ValueError(
                "mixup_alpha and cutmix_alpha are both 0, which mixes nothing; set one of them, or leave the collator out"
            )
        for name, share in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
            _check_share(name, share)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
        if soft_labels_as not in ("soft_labels", "labels"):
            raise ValueError(f"soft_labels_as must be 'soft_labels' or 'labels', got {soft_labels_as!r}")
        self.num_classes, self.mixup_alpha, self.cutmix_alpha = num_classes, mixup_alpha, cutmix_alpha
        self.prob, self.switch_prob, self.mode, self.label_smoothing = prob, switch_prob, mode, label_smoothing
        self.collator, self.transform = collator, transform
        self.image_key, self.soft_labels_as = image_key, soft_labels_as

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = dict(self.collator(examples))
        images, labels = batch.get(self.image_key), batch.get("labels")
        if not isinstance(images, Tensor) or images.ndim < 3:
            raise ValueError(
                f"the batch has no images to mix under {self.image_key!r} (it has: {', '.join(batch)}); set image_key"
            )
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1:
            raise ValueError("labels must be one integer class index for each image to be mixed into soft labels")
        if self.transform is not None:
            batch[self.image_key], batch[self.soft_labels_as] = self.transform(images, labels)
            return batch
        kept = self._own_share(len(images), *images.shape[-2:]).to(images.dtype)
        kept = kept.reshape(len(images), *[1] * (images.ndim - 3), *images.shape[-2:])
        batch[self.image_key] = kept * images + (1 - kept) * images.flip(0)
        share = kept.flatten(1).float().mean(1).clamp(0, 1)
        batch[self.soft_labels_as] = mix_targets(labels, self.num_classes, share, smoothing=self.label_smoothing)
        return batch

    def _own_share(self, rows: int, height: int, width: int) -> Tensor:
        """(N, H, W): the share that each pixel keeps of its own image; its mean over an image is λ."""
        draws = {"batch": 1, "pair": (rows + 1) // 2, "elem": rows}[self.mode]
        cut = torch.rand(draws) < self.switch_prob
        if self.mixup_alpha == 0 or self.cutmix_alpha == 0:
            cut = torch.full_like(cut, self.mixup_alpha == 0)
        lam = torch.ones(draws)
        for alpha, chosen in ((self.mixup_alpha, ~cut), (self.cutmix_alpha, cut)):
            if alpha > 0:
                lam = torch.where(chosen, Beta(float(alpha), float(alpha)).sample((draws,)), lam)
        lam = torch.where(torch.rand(draws) < self.prob, lam, 1)
        blended = lam[:, None, None].expand(draws, height, width)
        kept = torch.where(cut[:, None, None], _outside_boxes(lam, height, width), blended)
        if self.mode == "pair":  # both images of a pair share a draw; the middle one of an odd number is its own partner
            return torch.cat([kept, kept[: rows // 2].flip(0)])
        return kept.expand(rows, height, width)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As a callback: wrap the collator of the training data, and of that only."""
        loader = kwargs["train_dataloader"]
        loader = getattr(loader, "base_dataloader", loader)  # accelerate wraps the loader that holds the collator
        if loader.collate_fn is not self:
            self.collator, loader.collate_fn = loader.collate_fn, self


def _outside_boxes(lam: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W): 0 in a box of area 1 − λ around a random pixel, clipped at the border, else 1."""

    def inside(size: int) -> Tensor:
        half = (size * (1 - lam).sqrt()).int() // 2
        centre = torch.randint(size, lam.shape)
        position = torch.arange(size)
        return (position >= (centre - half)[:, None]) & (position < (centre + half)[:, None])

    return 1 - (inside(height)[:, :, None] & inside(width)[:, None, :]).float()


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
