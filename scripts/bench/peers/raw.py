"""A hand-written loop. `fast` gathers a batch at once and sets lr by hand: the physical limit."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from scripts.bench.peers import common

flags = common.arguments()
fast = flags.variant == "fast"
size, model, data = common.build(flags, batched=fast)
loader = DataLoader(
    data,
    batch_size=size.batch,
    shuffle=False,
    drop_last=True,
    collate_fn=(lambda batch: batch) if fast else None,
)
optimizer = common.optimizer(model, flags)
schedule = (
    None
    if fast
    else torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: common.cosine(t, flags.steps))
)
params = list(model.parameters())
model.train()
batches, total = iter(loader), torch.zeros(())
for step in range(flags.steps):
    if fast:
        for group in optimizer.param_groups:
            group["lr"] = flags.lr * common.cosine(step, flags.steps)
    for _ in range(flags.accumulation):
        loss = model(**next(batches))["loss"]
        if flags.accumulation > 1:
            loss = loss / flags.accumulation
        loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(params, flags.clip)
    optimizer.step()
    if schedule is not None:
        schedule.step()
    optimizer.zero_grad(set_to_none=True)
    if (step + 1) % flags.log_every == 0:
        row = {
            "step": step + 1,
            "loss": total.item() / flags.log_every,
            "grad_norm": norm.item(),
            "lr": optimizer.param_groups[0]["lr"],
        }
        print(row, flush=True)
        total.zero_()
