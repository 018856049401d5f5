"""Attribution maps against the formula written out, and against models that are known to look at one place."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from maxsup_hf.analysis.attribution import attribute
from tests import tiny
from tests.trainer.test_features import ConvHead, convnext, swin

pytest.importorskip("captum", reason="needs captum (pip install -e '.[analysis]')")


class Pooled(nn.Module):
    """A feature map of four places, pooled; its channels are the colours of the image."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.AvgPool2d(4), nn.Linear(3, 5)

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.head(self.body(pixel_values).mean((2, 3))))


def test_grad_cam_is_its_formula():
    model, images, targets = Pooled(), torch.randn(3, 3, 8, 8), torch.tensor([4, 0, 2])
    found = attribute(model, {"pixel_values": images}, targets)
    assert (found.layer, found.method) == ("body", "Grad-CAM")
    colours = images.reshape(3, 3, 2, 4, 2, 4).mean((3, 5))
    weights = model.head.weight[targets] / 4  # the mean of the gradient over the four places
    torch.testing.assert_close(found.maps, torch.einsum("nc,nchw->nhw", weights, colours).relu().detach())


@pytest.mark.parametrize("make", [tiny.vit, tiny.resnet, convnext, swin, ConvHead])
def test_maps_of_networks_and_transformers(make):
    model = make().train()
    found = attribute(model, {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1])}, torch.tensor([3, 1]))
    assert found.maps.ndim == 3 and len(found.maps) == 2 and found.maps.shape[1] > 1
    assert found.maps.min() >= 0 and found.maps.isfinite().all()
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert dict(model.named_modules())[found.layer]


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_tokens_are_laid_out_as_the_image_is(place):
    """A transformer to whose last attention only one patch of the 2 x 2 is left has its map there."""
    model = tiny.vit()

    def leave_one(module, args, tokens):
        kept = torch.zeros_like(tokens)
        kept[:, [0, 1 + place]] = tokens[:, [0, 1 + place]]  # the class token comes first
        return kept

    model.vit.layers[-1].layernorm_before.register_forward_hook(leave_one)
    found = attribute(model, {"pixel_values": torch.randn(40, 3, 8, 8)}, torch.arange(40) % 5)
    assert (found.method, found.layer) == ("gradient × activation", "vit.layers.1.layernorm_before")
    bright = found.maps.flatten(1).sum(0) > 0
    assert bright.tolist() == [i == place for i in range(4)]


def test_a_model_without_places_has_no_map():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 5)

        def forward(self, pixel_values):
            return ImageClassifierOutput(logits=self.head(pixel_values.flatten(1)))

    assert attribute(Flat(), {"pixel_values": torch.randn(2, 3, 8, 8)}, torch.tensor([0, 1])) is None
