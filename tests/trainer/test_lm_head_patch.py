"""What is noted of logits that are not computed, against the same done to real ones."""

import pytest
import torch

from maxsup_hf.ops.linear import Head
from maxsup_hf.trainer.lm_head_patch import LazyLogits, NeedsLogitsError

B, S, D, V = 2, 3, 4, 5


def both():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(B, S, D, generator=generator), torch.randn(V, D, generator=generator)
    return LazyLogits(hidden, Head(weight), hidden.dtype), hidden @ weight.T


def made(lazy):
    hidden, (weight, bias, scale, softcap), _ = lazy.hidden, lazy.head, lazy.dtype
    logits = scale * (hidden @ weight.T + (0 if bias is None else bias))
    return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).to(lazy.dtype)


SOME = torch.tensor([[True, False, True], [False, True, False]])


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z,
        lambda z: z.float().contiguous().to(z.device, torch.float64),
        lambda z: z.to(dtype=torch.bfloat16),
        lambda z: 3 * z / 2,
        lambda z: torch.div(torch.mul(z, 3), 2),
        lambda z: -0.5 * (torch.tanh(z / 3) * 3),
        lambda z: (2.0 * z).tanh() / 4,
        lambda z: z + torch.arange(5.0) + torch.ones(1, 1, 5),
        lambda z: torch.add(z, torch.arange(5.0)) * 2,
        lambda z: z.view(-1, V),
        lambda z: z.view(-1, z.size(-1)).view((2, 3, 5)),
        lambda z: z.reshape(z.shape[0] * z.size(1), -1),
        lambda z: torch.reshape(z, (6, 5)),
        lambda z: z[..., :-1, :],
        lambda z: z[:, 1:],
        lambda z: z[:, -1],
        lambda z: z[0],
        lambda z: z[0, ...],
        lambda z: z[None, :, 1:],
        lambda z: z[SOME],
        lambda z: z[SOME, :],
        lambda z: z[:, torch.tensor([2, 0])],
        lambda z: z[torch.arange(2), torch.tensor([2, 0])],
        lambda z: z[:, :, :V],
    ],
)
def test_equals_what_it_stands_for(change):
    lazy, logits = map(change, both())
    assert lazy.shape == logits.shape and (lazy.ndim, lazy.dim()) == (logits.ndim, logits.ndim)
    assert lazy.dtype == logits.dtype and lazy.device == logits.device and lazy.is_floating_point()
    torch.testing.assert_close(made(lazy), logits, rtol=1e-2 if logits.dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z.softmax(-1),
        lambda z: torch.sigmoid(z),
        lambda z: z.movedim(-1, 1),
        lambda z: z.view(-1),
        lambda z: z.view(-1, S),
        lambda z: z[..., 0],
        lambda z: z[..., None],
        lambda z: z[:, :, 1:],
        lambda z: z[SOME, 0],
        lambda z: z[0, 0, 0],
        lambda z: z[torch.ones(B, S, V, dtype=torch.bool)],
        lambda z: z.__setitem__((..., 0), 0.0),
        lambda z: z * torch.ones(V),
        lambda z: z / torch.ones(V),
        lambda z: torch.ones(V) + z,
        lambda z: z + z,
        lambda z: z + 1,
        lambda z: z + torch.ones(S, 1),
        lambda z: z.tanh() + torch.ones(V),
        lambda z: (2 * z) + torch.ones(V),
        lambda z: z.tanh().tanh(),
        lambda z: z - 1,
        lambda z: 1 - z,
        lambda z: -z,
        lambda z: z**2,
        lambda z: z @ torch.ones(V, 1),
        lambda z: z > 0,
        lambda z: z == 0,
        lambda z: list(z),
        lambda z: len(z),
        lambda z: torch.mul(torch.ones(V), z),
        lambda z: z.numpy(),
    ],
)
def test_what_real_logits_alone_bear(change):
    lazy, _ = both()
    with pytest.raises(NeedsLogitsError):
        change(lazy)
