import pytest
import torch
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.nn.functional import cross_entropy
from transformers.models.bert import modeling_bert

from maxsup_hf import create_loss
from maxsup_hf.trainer.cross_entropy_patch import CrossEntropyPatch
from tests import tiny

FUNCTION, CRITERION, NN = nn.functional.cross_entropy, nn.CrossEntropyLoss, nn


def restored():
    names = modeling_bert.nn is NN and modeling_bert.CrossEntropyLoss is CRITERION is nn.CrossEntropyLoss
    return names and nn.functional.cross_entropy is FUNCTION


@pytest.mark.parametrize("name", tiny.CLASSIFIERS)
def test_the_loss_is_ours_inside_and_the_models_outside(name):
    model, batch = tiny.CLASSIFIERS[name](), tiny.batch(name)
    before = set(model.state_dict())
    patch = CrossEntropyPatch(create_loss("maxsup", alpha=0.3))
    with patch.opened(model):
        inside = model(**batch)
    assert restored()
    logits = inside.logits
    plain = torch.nn.functional.cross_entropy(logits, batch["labels"])
    penalty = 0.3 * (logits.amax(-1) - logits.mean(-1)).mean()
    torch.testing.assert_close(inside.loss, plain + penalty)
    torch.testing.assert_close(model(**batch).loss, plain)
    (call,) = patch.calls
    output = call.output
    torch.testing.assert_close(output.cross_entropy, plain)
    torch.testing.assert_close(output.penalty, penalty)
    assert set(model.state_dict()) == before


@pytest.mark.parametrize("name", tiny.CLASSIFIERS)
def test_names_are_restored_after_an_exception(name):
    model, batch = tiny.CLASSIFIERS[name](), tiny.batch(name)
    batch["labels"][0] = tiny.CLASSES
    with (
        pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"),
        CrossEntropyPatch(create_loss("maxsup")).opened(model),
    ):
        model(**batch)
    assert restored()


def test_a_class_derived_in_another_file_is_seen_through():
    class Derived(modeling_bert.BertForSequenceClassification):
        pass

    model = nn.Sequential(Derived(tiny.bert().config))  # and so is a wrapper
    patch = CrossEntropyPatch(create_loss("maxsup"))
    with patch.opened(model):
        model[0](**tiny.batch("bert"))
    assert len(patch.calls) == 1 and restored()


SPELLINGS = {
    "name": lambda logits, labels: CrossEntropyLoss()(logits, labels),
    "namespace": lambda logits, labels: nn.CrossEntropyLoss()(logits, labels),
    "function": lambda logits, labels: nn.functional.cross_entropy(logits, labels),
    "function by name": lambda logits, labels: cross_entropy(logits, labels),
}


class OwnModel(nn.Module):
    """A model of the user's own, which may spell its loss in many ways."""

    def __init__(self, criterion=None):
        super().__init__()
        self.linear, self.criterion = nn.Linear(4, 3), criterion or nn.CrossEntropyLoss()

    def forward(self, x, labels):
        logits = self.linear(x)
        return self.criterion(logits, labels), logits


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("spelling", [*SPELLINGS, "held"])
def test_every_spelling_of_cross_entropy(spelling, compiled):
    torch._dynamo.reset()
    model, x, labels = OwnModel(SPELLINGS.get(spelling)), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 1])
    forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    forward(x, labels)  # a graph of the model's own loss must not serve ours
    patch = CrossEntropyPatch(create_loss("maxsup", alpha=0.2))
    with patch.opened(model):
        loss, logits = forward(x, labels)
    plain = FUNCTION(logits, labels)
    torch.testing.assert_close(loss, plain + 0.2 * (logits.amax(-1) - logits.mean(-1)).mean())
    assert len(patch.calls) == 1 and restored()
    torch.testing.assert_close(forward(x, labels)[0], plain)


def test_class_weights_of_the_model_stay():
    weight = torch.tensor([1.0, 2.0, 0.5])
    model, x, labels = OwnModel(nn.CrossEntropyLoss(weight)), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 1])
    with CrossEntropyPatch(create_loss("maxsup", alpha=0.2)).opened(model):
        loss, logits = model(x, labels)
    torch.testing.assert_close(loss, FUNCTION(logits, labels, weight) + 0.2 * (logits.amax(-1) - logits.mean(-1)).mean())


def test_smoothing_inside_the_model_is_refused():
    model = OwnModel(nn.CrossEntropyLoss(label_smoothing=0.1))
    with (
        pytest.raises(ValueError, match="has label_smoothing=0.1, which loss .maxsup."),
        CrossEntropyPatch(create_loss("maxsup")).opened(model),
    ):
        model(torch.randn(2, 4), torch.tensor([0, 1]))
    assert restored()


def test_soft_labels_must_fit():
    model = tiny.vit()
    patch = CrossEntropyPatch(create_loss("maxsup"))
    patch.soft_labels = torch.rand(8, 4).softmax(-1)
    with (
        pytest.raises(ValueError, match=r"soft_labels must have the shape of the logits, \(8, 5\), got \(8, 4\)"),
        patch.opened(model),
    ):
        model(**tiny.batch("vit"))


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_compiled_model_has_no_more_graphs_and_compiles_once_for_a_schedule(name):
    from torch._dynamo.testing import CompileCounterWithBackend

    batch = tiny.batch(name)

    def graphs(steps):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        model = tiny.CLASSIFIERS[name](problem_type="single_label_classification")
        compiled = torch.compile(model, backend=counter)
        losses = [step(model, compiled) for step in steps]
        return sum(len(graph.graph.nodes) > 0 for graph in counter.graphs), losses

    def stock(model, compiled):
        return compiled(**batch).loss

    patch = CrossEntropyPatch(create_loss("maxsup"))

    def ours(progress):
        def step(model, compiled):
            patch.set_progress(progress)
            with patch.opened(model):
                loss = compiled(**batch).loss
                loss.backward()
            assert len(patch.calls) == 1
            with patch.opened(model):
                torch.testing.assert_close(model(**batch).loss, loss)
            return loss.item()

        return step

    stock_graphs, _ = graphs([stock, stock])
    our_graphs, losses = graphs([ours(0.0), ours(0.5), ours(1.0)])
    assert our_graphs <= stock_graphs
    assert losses[0] < losses[1] < losses[2]
