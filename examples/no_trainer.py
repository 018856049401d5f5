"""MaxSup in your own training loop on Accelerate: exact under accumulation and on many devices, resumable, and tracked.

    accelerate launch --config_file examples/accelerate/cpu.yaml examples/no_trainer.py --output_dir out
    … --resume                # resumes from the last complete checkpoint in --output_dir

Two things make the gradients exact: the loss is summed over a micro-batch and divided by the number of items in the complete
batch (over all micro-batches and devices), and alpha depends only on the step.
"""

import argparse
import json
import os
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForImageClassification

from maxsup_hf import create_loss, list_losses


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir")
    parser.add_argument("--loss", choices=list_losses(), default="maxsup")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=16, help="rows per device and micro-batch")
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--save_steps", type=int, default=50)
    parser.add_argument("--tracker", choices=("tensorboard", "trackio", "wandb"))
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    output = Path(args.output_dir or tempfile.mkdtemp())

    set_seed(0)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        log_with=args.tracker,
        project_config=ProjectConfiguration(str(output)),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # the order depends only on the epoch
    )
    if args.tracker:
        accelerator.init_trackers("no_trainer", config={"loss": args.loss, "steps": args.steps})
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    train, test = TensorDataset(pixels[:1500], torch.tensor(labels[:1500])), (pixels[1500:], torch.tensor(labels[1500:]))
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, num_labels=10,
        )
    )  # fmt: skip
    loss = create_loss(args.loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=args.steps)
    own = torch.Generator().manual_seed(0)  # so that the loader does not use the model's random numbers
    loader = DataLoader(train, batch_size=args.batch_size, shuffle=True, drop_last=True, generator=own)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)  # the scheduler steps once for all devices

    first = 0
    if args.resume and (last := last_complete(output)) is not None:
        accelerator.load_state(str(last))
        saved = json.loads((last / "progress.json").read_text())
        scheduler.load_state_dict(saved["scheduler"])
        first = saved["step"]
        accelerator.print(f"resumed {last}")

    micro_batches = endless(loader, accelerator, first * args.accumulation)
    for step in tqdm(range(first, args.steps), initial=first, total=args.steps, disable=not accelerator.is_main_process):
        batch = [next(micro_batches) for _ in range(args.accumulation)]
        items = accelerator.reduce(torch.stack([(y != -100).sum() for _, y in batch]).sum())
        total = torch.zeros((), device=accelerator.device)
        for i, (x, y) in enumerate(batch):
            with accelerator.no_sync(model) if i < len(batch) - 1 else nullcontext():  # devices communicate once per step
                value = loss(model(x).logits, y, progress=step / args.steps, num_items_in_batch=items)
                # DDP averages gradients over the devices; multiplying by their number gives the sum.
                accelerator.backward(value * accelerator.num_processes)
            total += value.detach()
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if args.tracker and step % 10 == 0:
            accelerator.log({"loss": accelerator.reduce(total).item(), "lr": scheduler.get_last_lr()[0]}, step=step)
        if (step + 1) % args.save_steps == 0 or step + 1 == args.steps:
            save(accelerator, output / f"step-{step + 1}", {"step": step + 1, "scheduler": scheduler.state_dict()})

    model.eval()
    with torch.no_grad():
        logits = model(test[0].to(accelerator.device)).logits
        evaluated = torch.nn.functional.cross_entropy(logits, test[1].to(accelerator.device))  # the same for every loss
    accelerator.print(f"cross-entropy on unseen digits: {evaluated:.3f} ({accelerator.num_processes} process(es))")
    accelerator.end_training()
    if args.output_dir is None:
        shutil.rmtree(output)


def endless(loader, accelerator, skip):
    """Micro-batches without end, reshuffled in each epoch, after skipping those that were trained on before a resume."""
    epoch, skip = divmod(skip, len(loader))
    while True:
        loader.set_epoch(epoch)
        yield from accelerator.skip_first_batches(loader, skip) if skip else loader
        epoch, skip = epoch + 1, 0


def save(accelerator, folder, progress):
    """Save a checkpoint. progress.json is written last and renamed when complete: a folder that has it can be resumed."""
    accelerator.save_state(str(folder))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished = folder / "progress.unfinished"
        unfinished.write_text(json.dumps(progress))
        os.replace(unfinished, folder / "progress.json")


def last_complete(output):
    """The folder of the last complete checkpoint, or `None`."""
    steps = [path.parent for path in output.glob("step-*/progress.json")]
    return max(steps, key=lambda path: int(path.name.removeprefix("step-")), default=None)


if __name__ == "__main__":
    main()
