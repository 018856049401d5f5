"""MaxSup in TRL's SFTTrainer, by the mixin: prompts, packing, chat templates, LoRA and evaluation are still those of TRL."""

import pydoc_data.topics
import tempfile
from dataclasses import dataclass

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from maxsup_hf import MaxSupArgumentsMixin, MaxSupMixin


class MaxSupSFTTrainer(MaxSupMixin, SFTTrainer):
    """SFTTrainer with the loss of MaxSupSFTConfig."""


@dataclass
class MaxSupSFTConfig(MaxSupArgumentsMixin, SFTConfig):
    """SFTConfig with `loss` and `loss_kwargs`."""


torch.manual_seed(0)
# Use your own prompts and completions, tokenizer and model instead.
topics = pydoc_data.topics.topics  # Python's own manual
pairs = [{"prompt": f"{name}:", "completion": f" {text[:200]}"} for name, text in topics.items()]
words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.train_from_iterator(
    (text for pair in pairs for text in pair.values()),
    trainers.WordLevelTrainer(vocab_size=400, special_tokens=["[UNK]", "[PAD]", "[EOS]"], show_progress=False),
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]")
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
    pad_token_id=1, eos_token_id=2, bos_token_id=None,
)  # fmt: skip

with tempfile.TemporaryDirectory() as folder:
    args = MaxSupSFTConfig(
        folder, loss="maxsup", max_steps=60, learning_rate=1e-2, per_device_train_batch_size=16, max_length=64, bf16=False,
        gradient_checkpointing=False, save_strategy="no", use_cpu=True,
    )  # fmt: skip
    trainer = MaxSupSFTTrainer(
        LlamaForCausalLM(config), args, processing_class=tokenizer, train_dataset=Dataset.from_list(pairs[:70]),
        eval_dataset=Dataset.from_list(pairs[70:]),
    )  # fmt: skip
    trainer.train()
    print(f"cross-entropy on unseen pages: {trainer.evaluate()['eval_loss']:.3f}")
