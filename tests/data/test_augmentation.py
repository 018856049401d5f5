"""Augmentation changes images at random, by torch's generator alone, and keeps what it must."""

import pytest
import torch

from maxsup_hf.data.augmentation import AUGMENTATIONS, Augmentation

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]


def images(n=16, size=24):
    pixels = torch.rand(n, 3, size, size)
    return (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def test_none_is_nothing():
    pixels = images()
    assert not Augmentation("none") and Augmentation("none")(pixels) is pixels


@pytest.mark.parametrize("erasing", [0.0, 0.5])
@pytest.mark.parametrize("name", AUGMENTATIONS[1:])
def test_it_is_the_seeds(name, erasing):
    pixels, augment = images(), Augmentation(name, MEAN, STD, erasing)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(augment(pixels.clone()))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].shape == pixels.shape and found[0].dtype == pixels.dtype
    assert all((each != before).any() for each, before in zip(found[0], pixels, strict=True))


def test_a_crop_is_a_shifted_image_flipped_or_not():
    """Every image is found again, at most an eighth of its size away."""
    pixels = images(32, 16)
    for before, after in zip(pixels, Augmentation("crop_flip")(pixels), strict=True):
        padded = torch.nn.functional.pad(before[None], (2, 2, 2, 2), mode="reflect")[0]
        windows = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
        assert any(torch.allclose(after, w, atol=1e-5) or torch.allclose(after, w.flip(-1), atol=1e-5) for w in windows)


def test_erased_is_the_mean_colour():
    pixels = images().abs() + 1
    erased = Augmentation("none", random_erasing=1.0)(pixels)
    zero = erased == 0
    assert zero.any(dim=(1, 2, 3)).all() and torch.equal(erased[~zero], pixels[~zero])


def test_images_that_are_not_square():
    pixels = torch.rand(4, 3, 16, 40)
    assert Augmentation("randaugment", MEAN, STD)(pixels).shape == pixels.shape


@pytest.mark.parametrize(
    ("arguments", "message"), [(("crop",), "augmentation must be one of"), (("none", None, None, 2.0), "random_erasing")]
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(*arguments)
