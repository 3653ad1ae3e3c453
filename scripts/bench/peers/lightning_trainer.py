"""lightning.Trainer; `default` with bar, summary, checkpoints and CSV logger, else without."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from scripts.bench.peers import common

flags = common.arguments()
size, model, data = common.build(flags)
default = flags.variant == "default"


class Lit(L.LightningModule):  # type: ignore[misc] # lightning is an optional peer
    """The shared model under Lightning's loop."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, index: int) -> Any:
        del index
        loss = self.model(**batch)["loss"]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = common.optimizer(self.model, flags)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: common.cosine(t, flags.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


trainer = L.Trainer(
    accelerator="cpu",
    devices=1,
    max_steps=flags.steps,
    max_epochs=1,
    accumulate_grad_batches=flags.accumulation,
    gradient_clip_val=flags.clip,
    log_every_n_steps=flags.log_every,
    default_root_dir=flags.folder,
    logger=CSVLogger(flags.folder) if default else False,
    enable_progress_bar=default,
    enable_model_summary=default,
    enable_checkpointing=default,
)
trainer.fit(Lit(), DataLoader(data, batch_size=size.batch, shuffle=False, drop_last=True))
