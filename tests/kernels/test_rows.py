import pytest
import torch

from maxsup_hf.kernels import rows
from maxsup_hf.kernels.rows import first_maximum


@pytest.mark.parametrize("classes", [5, 2048, 2049, 2303, 2304, 5000])
def test_first_maximum(classes):
    z = torch.randn(64, classes).mul_(2).round_()  # ties everywhere
    z[0], z[1], z[2, -1], z[3, 0] = 0.0, -torch.inf, 99.0, 99.0
    z[4, [0, -1]] = 99.0
    top, index = first_maximum(z)
    assert torch.equal(top, z.amax(1))
    assert torch.equal(index, torch.from_numpy(z.numpy().argmax(1)))


def test_blocks_cover_every_row_once(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 10)
    for n in (0, 1, 7):
        z = torch.arange(n)[:, None].expand(n, 3)
        assert torch.cat([z[part, 0] for part in rows.blocks(z)] or [z[:, 0]]).tolist() == list(range(n))
