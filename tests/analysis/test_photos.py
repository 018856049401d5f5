"""Where a processor's output lies in the photograph, against the crops and sizes that it was told."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import ViTImageProcessorPil

from maxsup_hf.analysis import photos
from maxsup_hf.analysis.photos import Photos, place_in_photo


def looked_at(pixels, **options):
    processor = ViTImageProcessorPil(**options)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*pixels[::-1], 3), dtype=np.uint8))
    return Photos(lambda row: image, lambda given: processor([given], return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize(
    ("size", "options", "place"),
    [
        ((64, 48), {"size": {"height": 16, "width": 16}}, (0, 64, 48, 0)),
        ((64, 48), {"size": {"height": 16, "width": 16}, "do_normalize": False}, (0, 64, 48, 0)),
        ((8, 8), {"size": {"height": 32, "width": 32}}, (0, 8, 8, 0)),
        ((64, 48), {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
         (8, 56, 48, 0)),
        ((60, 120), {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": {"height": 20, "width": 20}},
         (10, 50, 80, 40)),
        ((20, 20), {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 30, "width": 40}},
         (-10, 30, 25, -5)),  # pads
        ((1024, 768), {"size": {"height": 64, "width": 64}}, (0, 512, 384, 0)),  # is shown at half its size
    ],
)  # fmt: skip
def test_place(size, options, place):
    assert place_in_photo(looked_at(size, **options), 0) == pytest.approx(place, abs=0.012 * max(size))


def test_what_is_not_on_a_straight_line_has_no_place():
    def bent(image):
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).movedim(-1, 0) / 255
        return pixels**2

    image = PIL.Image.new("RGB", (40, 30), "red")
    assert place_in_photo(Photos(lambda row: image, bent), 0) is None


def test_photographs_keep_their_resolution_up_to_a_limit():
    assert looked_at((300, 200)).load(0).shape == (200, 300, 3)
    assert looked_at((2000, 1000)).load(0).shape == (photos.LONGEST // 2, photos.LONGEST, 3)
