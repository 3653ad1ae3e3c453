"""The hand-written loop on two ranks with FSDP2; rank 0 starts rank 1.

Both ranks read the same rows, as in `raw_ddp`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from scripts.bench.peers import common, two_ranks

flags = common.arguments()
rank, other = two_ranks.join("scripts.bench.peers.raw_fsdp")
size, module, data = common.build(flags)
loader = DataLoader(data, batch_size=size.batch, shuffle=False, drop_last=True)
for block in module.blocks:
    fully_shard(block)
model = fully_shard(module)
optimizer = common.optimizer(module, flags)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: common.cosine(t, flags.steps))
params = list(module.parameters())
module.train()
batches, total = iter(loader), torch.zeros(())
for step in range(flags.steps):
    for place in range(flags.accumulation):
        model.set_requires_gradient_sync(place == flags.accumulation - 1)
        loss = module(**next(batches))["loss"]
        if flags.accumulation > 1:
            loss = loss / flags.accumulation
        loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(params, flags.clip)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    if (step + 1) % flags.log_every == 0:
        dist.all_reduce(total)
        whole = norm.full_tensor()  # type: ignore[attr-defined] # a DTensor
        if rank == 0:
            row = {
                "step": step + 1,
                "loss": total.item() / flags.log_every / two_ranks.RANKS,
                "grad_norm": whole.item(),
                "lr": optimizer.param_groups[0]["lr"],
            }
            print(row, flush=True)
        total.zero_()
dist.destroy_process_group()
if other is not None:
    other.wait()
