"""A causal language model whose vocabulary is sharded over ranks (tensor parallelism), trained without gathering the logits.

The plans of transformers gather the logits on every rank: `"lm_head": "colwise_gather_output"`. With `"colwise"` each rank
keeps the logits of its own part of the vocabulary, which is all that `vocab_parallel_loss` needs.
"""

import os
import pydoc_data.topics
import tempfile

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig

from maxsup_hf import vocab_parallel_loss

VOCAB, LENGTH, STEPS = 256, 128, 60  # bytes

device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

# A random model in place of your checkpoint. Each rank loads its own part of it.
with tempfile.TemporaryDirectory() as folder:
    shared = [folder]
    dist.broadcast_object_list(shared)
    if dist.get_rank() == 0:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            tie_word_embeddings=False,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(shared[0])
    dist.barrier()
    plan = DistributedConfig(tp_plan={"lm_head": "colwise"})
    model = AutoModelForCausalLM.from_pretrained(shared[0], distributed_config=plan)
    dist.barrier()

text = " ".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")  # Python's own manual
pages = torch.tensor(list(text[: len(text) // LENGTH * LENGTH])).view(-1, LENGTH)
train, unseen = pages[:-100].to(device), pages[-100:].to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)


def loss_of(batch, loss, **kwargs):
    """The loss of a batch, which is the same on every rank, as tensor parallelism requires."""
    local_logits = model(batch).logits  # (N, LENGTH, VOCAB / ranks)
    assert local_logits.shape[-1] == VOCAB // dist.get_world_size()
    return vocab_parallel_loss(local_logits[:, :-1], batch[:, 1:], loss=loss, **kwargs)


generator = torch.Generator().manual_seed(0)
for step in range(STEPS):
    batch = train[torch.randint(len(train), (16,), generator=generator)]
    loss = loss_of(batch, "maxsup", alpha=0.1, alpha_end=0.2, progress=step / STEPS)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    cross_entropy = loss_of(unseen, "cross_entropy")
if dist.get_rank() == 0:
    print(f"cross-entropy on unseen bytes: {cross_entropy:.3f}")
dist.destroy_process_group()
