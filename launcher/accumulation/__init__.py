"""How many samples make one optimizer step, and in how many pieces they pass through a device.

Every kind states the batch its own way and works out the one equation (`BatchPlan`):

    samples_per_step = micro_batch_size × micro_batches × ranks

`plan` is pure arithmetic: it needs no torch, no data and no device, so `trainctl check` knows the
batch before anything starts. Numbers that contradict each other are a ValueError that gives the
nearest that do not.

For a training loop of one's own there is `launcher.gradient_accumulator`.

To add a kind: one module with one public `AccumulationOption`, and conf/accumulation/<kind>.yaml.
"""
