"""Tiny models from configs, with a batch each; nothing random in their forward."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

CLASSES = 5


def vit(**kwargs):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        **{"num_labels": CLASSES, **kwargs},
    )  # fmt: skip
    return ViTForImageClassification(config)


def resnet(**kwargs):
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **{"num_labels": CLASSES, **kwargs}
    )
    return freeze_batch_norm(ResNetForImageClassification(config))


def bert(**kwargs):
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES, **kwargs},
    )  # fmt: skip
    return BertForSequenceClassification(config)


def llama():
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def freeze_batch_norm(model):
    """Statistics of a batch make every gradient depend on how the batch is cut, whatever the loss."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


CLASSIFIERS = {"vit": vit, "resnet": resnet, "bert": bert}


def batch(name, size=8, seed=0):
    """Inputs and labels of `size` examples."""
    generator = torch.Generator().manual_seed(seed)
    if name == "bert":
        inputs = {
            "input_ids": torch.randint(3, 40, (size, 7), generator=generator),
            "attention_mask": (torch.arange(7) < torch.randint(3, 8, (size, 1), generator=generator)).long(),
        }
    else:
        inputs = {"pixel_values": torch.randn(size, 3, 8, 8, generator=generator)}
    return inputs | {"labels": torch.randint(CLASSES, (size,), generator=generator)}


def rows(data):
    """A batch as a list of examples."""
    return [{key: value[i] for key, value in data.items()} for i in range(len(next(iter(data.values()))))]


class ItemsOnly(torch.utils.data.Dataset):
    """A map-style data set of which the library can read nothing but its items."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def cut(data, sizes):
    """A batch as micro-batches of the given sizes."""
    pieces = {key: value.split(sizes) for key, value in data.items()}
    return [{key: value[i] for key, value in pieces.items()} for i in range(len(sizes))]


def gradients(trainer, batches):
    """Loss and gradients of one optimizer step over micro-batches, through the Trainer's own methods."""
    samples, num_items = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    trainer.model.zero_grad()
    loss = sum(trainer.training_step(trainer.model, dict(sample), num_items) for sample in samples)
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def relative_error(gradient, reference):
    assert gradient.keys() == reference.keys()
    difference = sum((gradient[name] - reference[name]).double().square().sum() for name in reference)
    return (difference / sum(value.double().square().sum() for value in reference.values())).sqrt().item()
