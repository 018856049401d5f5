"""The classifier layer is found by looking: what goes into it, times its weight, plus its bias, must be the logits."""

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForSequenceClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from maxsup_hf.trainer.features import extract, find_classifier
from tests import tiny


def roberta():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return RobertaForSequenceClassification(RobertaConfig(vocab_size=40, num_labels=5, **small))


def llama():
    config = tiny.llama().config
    config.num_labels = 5
    return LlamaForSequenceClassification(config)


def gpt2():
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=5, pad_token_id=0)
    return GPT2ForSequenceClassification(config)


def t5():
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=5, decoder_start_token_id=0
    )
    return T5ForSequenceClassification(config)


def squeezebert():
    small = {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    groups = {name: 1 for name in ("q_groups", "k_groups", "v_groups", "post_attention_groups", "output_groups")}
    config = SqueezeBertConfig(vocab_size=40, num_labels=5, intermediate_size=32, intermediate_groups=1, **small, **groups)
    return SqueezeBertForSequenceClassification(config)


def distilbert():
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=32, num_labels=5)
    )


def convnext():
    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, num_labels=5)
    )


def swin():
    return SwinForImageClassification(
        SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, num_labels=5)
    )


def mobilenet():
    return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.25, num_labels=5))


class ConvHead(nn.Module):
    """SqueezeNet's: classify every position, then average."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.head(self.body(pixel_values).relu()).mean((2, 3)))


IMAGES = {"vit": tiny.vit, "resnet": tiny.resnet, "convnext": convnext, "swin": swin, "mobilenet": mobilenet,
          "conv head": ConvHead}  # fmt: skip
TEXTS = {"bert": tiny.bert, "roberta": roberta, "llama": llama, "gpt2": gpt2, "t5": t5, "distilbert": distilbert,
         "squeezebert": squeezebert}  # fmt: skip


def batch(name, size=6):
    data = tiny.batch("vit" if name in IMAGES else "bert", size)
    if name == "t5":  # its head reads the one end-of-text token
        data["input_ids"][:] = torch.where(data["input_ids"] == 1, 2, data["input_ids"])
        data["input_ids"][:, -1], data["attention_mask"][:] = 1, 1
    elif name in TEXTS:
        data["input_ids"] *= data["attention_mask"]
    return data


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_features_times_the_classifier_are_the_logits(name):
    model = {**IMAGES, **TEXTS}[name]()
    data = batch(name)
    classifier = find_classifier(model, data)
    (rows,) = extract(model, [data], classifier)
    with torch.no_grad():
        expected = model.eval()(**{k: v for k, v in data.items() if k != "labels"}).logits
    torch.testing.assert_close(rows.logits, expected)
    bias = classifier.module.bias
    made = rows.features @ classifier.weight.T + (0 if bias is None else bias.detach())
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(rows.labels, data["labels"]) and rows.features.dtype == rows.logits.dtype == torch.float32


def test_the_mode_is_restored_and_no_hook_is_left():
    model = tiny.vit().train()
    list(extract(model, [batch("vit")]))
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_batches_do_not_matter():
    model, data = tiny.bert(), batch("bert")
    (whole,) = extract(model, [data])
    parts = list(extract(model, tiny.cut(data, [4, 1, 1])))
    for i in range(3):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]), whole[i])


def test_a_model_in_bfloat16():
    data = batch("vit") | {"pixel_values": batch("vit")["pixel_values"].bfloat16()}
    (rows,) = extract(tiny.vit().bfloat16(), [data])
    assert rows.features.dtype == torch.float32 and rows.features.shape == (6, 16)


class Scaled(tiny.ViTForImageClassification):
    def forward(self, **kwargs):
        output = super().forward(**kwargs)
        output.logits = 3 * output.logits
        return output


def test_what_has_no_classifier_layer_is_refused():
    deit = DeiTForImageClassificationWithTeacher(
        DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8,
                   patch_size=4, num_labels=5)
    )  # fmt: skip
    for model in (deit, Scaled(tiny.vit().config)):
        with pytest.raises(ValueError, match=r"no classifier layer that could be found: none of its \d+ linear"):
            find_classifier(model, batch("vit"))
    with pytest.raises(ValueError, match=r"not a classifier of rows: expected logits \(N, K\), got \(6, 7, 40\)"):
        find_classifier(tiny.llama(), batch("llama"))
    with pytest.raises(ValueError, match="got a BaseModelOutputWithPooling without logits"):
        find_classifier(tiny.vit().vit, batch("vit"))


def test_bad_batches():
    model, data = tiny.vit(), batch("vit")
    for labels in (None, torch.rand(6, 5), torch.rand(6)):
        with pytest.raises(ValueError, match=r"integer labels \(N,\)"):
            list(extract(model, [{**data, "labels": labels}]))
    data["pixel_values"][4] = torch.nan
    classifier = find_classifier(model, batch("vit"))
    with pytest.raises(ValueError, match="features are NaN or infinite, first in row 10: has the model diverged"):
        list(extract(model, [batch("vit"), data], classifier))
    with torch.no_grad():
        model.classifier.bias[2] = torch.inf
    with pytest.raises(ValueError, match="logits are NaN or infinite, first in row 0"):
        list(extract(model, [batch("vit")]))
