"""Accelerate, with the loop of its documentation."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from scripts.bench.peers import common

flags = common.arguments()
size, model, data = common.build(flags)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=flags.accumulation)
optimizer = common.optimizer(model, flags)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: common.cosine(t, flags.steps))
loader = DataLoader(data, batch_size=size.batch, shuffle=False, drop_last=True)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
model.train()
step, total, norm = 0, torch.zeros(()), torch.zeros(())
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        total += loss.detach()
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(model.parameters(), flags.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    if accelerator.sync_gradients:
        step += 1
        if step % flags.log_every == 0:
            mean = total.item() / flags.log_every / flags.accumulation
            row = {"step": step, "loss": mean, "grad_norm": norm.item()}
            accelerator.print({**row, "lr": schedule.get_last_lr()[0]}, flush=True)
            total.zero_()
