"""The state of online label smoothing; test_golden.py has its values."""

import pytest
import torch

from maxsup_hf import create_loss


def epoch(loss, seed=0, rows=12, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(rows, generator=generator) < 0.6, logits.argmax(-1), 0)
    loss(logits, labels)
    return logits, labels


def test_a_class_never_predicted_correctly_gets_the_fallback():
    loss = create_loss("online_label_smoothing", alpha=1.0)
    loss(torch.tensor([[2.0, 0.0, 0.0], [3.0, 0.0, 1.0]]), torch.tensor([0, 1]))
    loss.end_epoch(1)
    logits = torch.randn(1, 3)
    for label, target in ((0, torch.tensor([[2.0, 0.0, 0.0]]).softmax(-1)), (1, torch.full((1, 3), 1 / 3))):
        expected = torch.nn.functional.cross_entropy(logits, target)
        torch.testing.assert_close(loss(logits, torch.tensor([label])), expected)


def test_the_share_of_a_masked_class_goes_to_the_others():
    loss = create_loss("online_label_smoothing", alpha=1.0)
    loss(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0]))
    loss.end_epoch(1)
    logits = torch.tensor([[0.3, -torch.inf, 0.7]])
    target = torch.tensor([[2.0, 1.0]]).softmax(-1)
    torch.testing.assert_close(loss(logits, torch.tensor([0])), torch.nn.functional.cross_entropy(logits[:, [0, 2]], target))


def test_an_epoch_is_learned_from_once():
    loss = create_loss("online_label_smoothing")
    epoch(loss)
    loss.end_epoch(1)
    table = loss.state.table.clone()
    loss.end_epoch(1)
    assert torch.equal(loss.state.table, table) and table.sum() > 0
    epoch(loss, seed=1)
    loss.end_epoch(2)
    assert not torch.equal(loss.state.table, table)


def test_a_confident_soft_label_is_frozen():
    loss = create_loss("online_label_smoothing", freeze_threshold=0.9)
    loss(torch.tensor([[9.0, 0.0], [0.0, 0.5]]), torch.tensor([0, 1]))
    loss.end_epoch(1)
    first = loss.state.table.clone()
    loss(torch.tensor([[0.2, 0.0], [0.0, 0.2]]), torch.tensor([0, 1]))
    loss.end_epoch(2)
    assert torch.equal(loss.state.table[0], first[0]) and not torch.equal(loss.state.table[1], first[1])


def test_ignored_and_wrong_rows_do_not_change_the_state():
    loss, other = create_loss("online_label_smoothing"), create_loss("online_label_smoothing")
    logits, labels = torch.randn(20, 3), torch.randint(3, (20,))
    right = logits.argmax(-1) == labels
    loss(logits, torch.where(right, labels, -100))
    other(logits, labels)
    assert torch.equal(loss.state.total, other.state.total) and loss.state.count.sum() == right.sum()


def test_resuming_in_the_middle_of_an_epoch():
    uninterrupted, first, second = (create_loss("online_label_smoothing") for _ in range(3))
    for seed in (0, 1):
        epoch(uninterrupted, seed)
    uninterrupted.end_epoch(1)
    epoch(first, 0)
    second.state.load(first.state.tensors())
    epoch(second, 1)
    second.end_epoch(1)
    assert torch.equal(uninterrupted.state.table, second.state.table)


def test_two_ranks_learn_the_same_as_one():
    alone, left, right = (create_loss("online_label_smoothing") for _ in range(3))
    for seed, rank in ((0, left), (1, right)):
        epoch(alone, seed)
        epoch(rank, seed)
    sums = iter([left.state.total + right.state.total, left.state.count + right.state.count])
    kept = left.state.total.clone()
    saved = left.state.tensors(lambda _: next(sums))
    assert torch.equal(left.state.total, kept)  # saving does not add the other ranks' rows to a rank
    resumed, idle = create_loss("online_label_smoothing"), create_loss("online_label_smoothing")
    resumed.state.load(saved)
    idle.state.load(saved, main=False)
    assert idle.state.total.sum() == 0 and idle.state.count.sum() == 0
    for loss in (alone, resumed):
        loss.end_epoch(1)
    torch.testing.assert_close(alone.state.table, resumed.state.table)


def test_too_many_classes_are_rejected_before_allocation():
    with pytest.raises(ValueError, match="with 100,000 classes needs two 100,000 x 100,000 tables, 111.8 GiB"):
        create_loss("online_label_smoothing")(torch.zeros(1, 100_000), torch.tensor([0]))


def test_a_changed_number_of_classes_is_rejected():
    loss = create_loss("online_label_smoothing")
    epoch(loss)
    with pytest.raises(ValueError, match="one table for 4 classes, but got logits with 5"):
        loss(torch.randn(2, 5), torch.tensor([0, 1]))


def test_the_table_is_in_no_state_dict():
    loss = create_loss("online_label_smoothing")
    epoch(loss)
    assert not loss.state_dict()
