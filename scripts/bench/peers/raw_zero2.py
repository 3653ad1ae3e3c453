"""The hand-written loop on two ranks with DeepSpeed's ZeRO stage 2; rank 0 starts rank 1.

Both ranks read the same rows, as in `raw_ddp`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from launcher.parallelism._zero_partitions import import_deepspeed
from scripts.bench.peers import common, two_ranks

flags = common.arguments()
# The same import as trainctl's: without it DeepSpeed compiles a library first, for minutes.
deepspeed = import_deepspeed("cpu")
rank, other = two_ranks.join("scripts.bench.peers.raw_zero2")
size, module, data = common.build(flags)
loader = DataLoader(data, batch_size=size.batch, shuffle=False, drop_last=True)
optimizer = common.optimizer(module, flags)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: common.cosine(t, flags.steps))
engine, *_ = deepspeed.initialize(
    model=module,
    optimizer=optimizer,
    lr_scheduler=schedule,
    dist_init_required=False,
    config={
        "train_micro_batch_size_per_gpu": size.batch,
        "gradient_accumulation_steps": flags.accumulation,
        "gradient_clipping": flags.clip,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
    },
)
engine.train()
batches, total = iter(loader), torch.zeros(())
for step in range(flags.steps):
    for _ in range(flags.accumulation):
        loss = engine(**next(batches))["loss"]
        engine.backward(loss)
        engine.step()
        total += loss.detach() / flags.accumulation
    if (step + 1) % flags.log_every == 0:
        dist.all_reduce(total)
        if rank == 0:
            row = {
                "step": step + 1,
                "loss": total.item() / flags.log_every / two_ranks.RANKS,
                "grad_norm": float(engine.get_global_grad_norm()),
                "lr": optimizer.param_groups[0]["lr"],
            }
            print(row, flush=True)
        total.zero_()
dist.destroy_process_group()
if other is not None:
    other.wait()
