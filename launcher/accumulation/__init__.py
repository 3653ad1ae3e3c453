"""Samples per optimizer step, and their division into micro-batches (`BatchPlan`).

`plan` is arithmetic without torch, data or device, so that `trainctl check` can show the batch
before anything starts. Custom training loops use `launcher.gradient_accumulator`.

To add a kind: one module with one public `AccumulationOption`, and conf/accumulation/<kind>.yaml.
"""
