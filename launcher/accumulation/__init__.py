"""Samples per optimizer step, and their division into micro-batches.

Every kind defines the global batch in its own way and solves one equation (`BatchPlan`):

    samples_per_step = micro_batch_size × micro_batches × ranks

`plan` is pure arithmetic without torch, data or device, so that `trainctl check` can show the batch
before anything starts. Contradicting numbers are a ValueError that names the nearest valid ones.

For a custom training loop, use `launcher.gradient_accumulator`: the engines do not need it, because
they know a window's number of targets before its first backward pass.

To add a kind: one module with one public `AccumulationOption`, and conf/accumulation/<kind>.yaml.
"""
