"""Logits sharded along the vocabulary over two and three processes (gloo), against the same loss on all logits."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from maxsup_hf import create_loss, list_losses, vocab_parallel_loss
from maxsup_hf.losses import _registry, get_spec, register_loss
from tests import warm

ON_STATISTICS = [name for name in [*list_losses(), "maxsup+z_loss"] if not get_spec(name).needs_logits]
SIZES = {2: (5, 8), 3: (4, 1, 8)}
CASES = {"mean": {}, "sum": {"reduction": "sum"}, "items": {"num_items_in_batch": 20}, "late": {"progress": 0.8}}


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 6, 13, generator=generator, dtype=torch.float64)).round(decimals=1).to(dtype)
    labels = torch.randint(13, (2, 6), generator=generator)
    logits[0, 0, 2] = logits[0, 0, 9] = 20.0  # the top is tied, on different ranks
    logits[0, 1, 4:7] = -torch.inf  # masked classes; with three ranks, all classes of the second
    labels[0, 1] = 0
    labels[1, 2] = labels[1, 5] = -100
    logits[1, 2] = torch.nan
    return logits, labels


def on_a_rank(results):
    """Run by each process."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    calls = []
    gather = dist.all_gather
    dist.all_gather = lambda *args, **kwargs: calls.append(args[1].shape) or gather(*args, **kwargs)
    sizes = SIZES[world]
    start = sum(sizes[:rank])
    found = {}
    for dtype in (torch.float64, torch.bfloat16):
        logits, labels = problem(dtype)
        for name in ON_STATISTICS:
            for case, kwargs in CASES.items():
                mine = logits[..., start : start + sizes[rank]].clone().requires_grad_()
                calls.clear()
                value = vocab_parallel_loss(mine, labels, loss=name, vocab_start=None if case == "sum" else start, **kwargs)
                forward = len(calls)
                (2 * value).backward()
                found[dtype, name, case] = value.detach(), mine.grad, forward, len(calls) - forward
                with torch.no_grad():  # as in evaluation
                    assert torch.equal(vocab_parallel_loss(mine, labels, loss=name, vocab_start=start, **kwargs), value)
    check_dtensors(world)
    torch.save(found, f"{results}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


def check_dtensors(world):
    """A loss on a DTensor is the loss on the complete logits."""
    mesh = init_device_mesh("cpu", (world,))
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 7, -100, 3, 2, -100])
    for name in list_losses():
        complete = logits.clone().requires_grad_()
        expected = create_loss(name)(complete, labels)
        expected.backward()
        for placement in (Shard(0), Shard(1), Replicate()):
            parts = distribute_tensor(logits, mesh, [placement]).requires_grad_()
            of_labels = distribute_tensor(labels, mesh, [Shard(0) if placement == Shard(0) else Replicate()])
            for target in (labels, of_labels):
                value = create_loss(name)(parts, target)
                (gradient,) = torch.autograd.grad(value, parts)
                torch.testing.assert_close(value, expected)
                torch.testing.assert_close(gradient.full_tensor(), complete.grad)


@pytest.fixture(scope="module", params=SIZES)
def of_ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    code = "import sys; from tests.losses.test_vocab_parallel import on_a_rank; on_a_rank(sys.argv[1])"
    done = warm.run("-c", code, folder / "results", cwd=folder, processes=request.param)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"results.{rank}", weights_only=False) for rank in range(request.param)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ON_STATISTICS)
def test_equals_the_loss_on_all_logits(name, case, of_ranks):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.bfloat16, 2**-7)):
        logits, labels = problem(dtype)
        exact = logits.double().requires_grad_()
        value = create_loss(name)(exact, labels, **CASES[case])
        (2 * value).backward()
        found = [rank[dtype, name, case] for rank in of_ranks]
        assert all(torch.equal(rank[0], found[0][0]) for rank in found)
        torch.testing.assert_close(found[0][0].double(), value, rtol=min(tolerance, 1e-5), atol=1e-6)
        gradient = torch.cat([rank[1] for rank in found], -1)
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), exact.grad, rtol=tolerance, atol=tolerance / 100)
        # one all_gather in the forward, and one more if vocab_start was not given; none in the backward
        assert all((rank[2], rank[3]) == (2 if case == "sum" else 1, 0) for rank in found)


def test_misuse():
    logits, labels = problem()
    with pytest.raises(RuntimeError, match="needs a process group"):
        vocab_parallel_loss(logits, labels)
    with pytest.raises(ValueError, match="'logit_norm' needs the logits"):
        vocab_parallel_loss(logits, labels, loss="logit_norm")
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        vocab_parallel_loss(logits, labels, reduction="none")
    with pytest.raises(ValueError, match=r"labels must be integers of shape \(2, 6\)"):
        vocab_parallel_loss(logits, labels[:1])


def test_a_formula_that_divides_by_a_statistic_leaves_ignored_rows_alone(tmp_path, monkeypatch):
    """All statistics of an ignored row are 0, so that its slopes are not finite."""
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))

    @register_loss("variance")
    def variance(cross_entropy, square, mean, classes, *, beta=0.1):
        return cross_entropy, beta * (square / classes - mean**2)

    logits = torch.randn(3, 7, dtype=torch.float64)
    labels = torch.tensor([2, -100, 6])
    whole = logits.clone().requires_grad_()
    create_loss("variance")(whole, labels).backward()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        part = logits.clone().requires_grad_()
        vocab_parallel_loss(part, labels, loss="variance").backward()
    finally:
        dist.destroy_process_group()
    assert not whole.grad[1].any()
    torch.testing.assert_close(part.grad, whole.grad)
