"""Train a tiny image classifier for two steps, with any training arguments, push it, and save its logits.

python -m tests.hub.train OUTPUT [--name value ...]      # values are JSON
"""

import json
import sys

import torch

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny


def main(output: str, *flags: str) -> None:
    given = {name.removeprefix("--"): json.loads(value) for name, value in zip(flags[::2], flags[1::2], strict=True)}
    options = {"max_steps": 2, "save_steps": 1, "use_cpu": True, "disable_tqdm": True, "push_to_hub": True} | given
    torch.manual_seed(0)
    data = tiny.rows(tiny.batch("vit", size=16))
    trainer = MaxSupTrainer(tiny.vit(), MaxSupTrainingArguments(output, **options), train_dataset=data)
    trainer.train()
    print("trained", trainer.state.global_step)
    if options["push_to_hub"]:
        trainer.push_to_hub()
        print("pushed")
    torch.save(trainer.model.eval()(data[0]["pixel_values"][None]).logits, f"{output}/logits.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
