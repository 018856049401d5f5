"""MaxSup in a sentence-transformers CrossEncoder that classifies pairs of texts (inference, duplicates, …).

The criterion of its loss is replaced by a loss from `create_loss`. The criterion does not know the progress of training, so
alpha is constant. MaxSup does not apply to embedding models and to cross-encoders with a single score: they have no classes.
"""

import tempfile
from itertools import product

import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import CrossEntropyLoss
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from maxsup_hf import create_loss

torch.manual_seed(0)
# Is the second number word less than, equal to or more than the first? Use your own pairs, model and tokenizer instead.
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
pairs = list(product(range(10), range(10)))
rows = [{"first": WORDS[a], "second": WORDS[b], "label": int(b == a) + 2 * int(b > a)} for a, b in pairs]
unseen = Dataset.from_list(rows[::5])
seen = Dataset.from_list([row for i, row in enumerate(rows) if i % 5])

with tempfile.TemporaryDirectory() as folder:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            num_labels=3,
        )
    ).save_pretrained(folder)  # fmt: skip
    model = CrossEncoder(folder, num_labels=3, device="cpu")
    loss = CrossEntropyLoss(model)
    loss.ce_loss = create_loss("maxsup", alpha=0.1, alpha_end=None)
    args = CrossEncoderTrainingArguments(
        f"{folder}/out", num_train_epochs=40, per_device_train_batch_size=16, learning_rate=5e-3, save_strategy="no",
        use_cpu=True, report_to="none",
    )  # fmt: skip
    CrossEncoderTrainer(model, args, train_dataset=seen, loss=loss).train()
    scores = model.predict(list(zip(unseen["first"], unseen["second"], strict=True)), convert_to_tensor=True)
    cross_entropy = create_loss("cross_entropy")(scores.cpu(), torch.tensor(unseen["label"]))
    print(f"cross-entropy on unseen pairs: {cross_entropy:.3f}")
