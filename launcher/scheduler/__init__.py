"""Learning-rate schedules: pure functions of the step, without torch.

`build` resolves all lengths once, against the run's `Horizon`, and returns a `Schedule`: `lr(step,
memory)` is the rate of optimizer step `step`, the first being 0. It is defined past the end of the
run too; each kind documents its value there. Names, formulas and off-by-ones are those of
Transformers' `get_scheduler` and torch's `lr_scheduler`; tests compare them to 1e-12.

* **Lengths** (`warmup_steps`, `decay_steps`, …) are steps (`300`), a fraction of the run (`0.05`,
  as in Transformers), or an amount with its unit: `5%`, `2 epochs`, `1000 samples`, `10M tokens`.
  A length that does not fit the run is an error with the numbers.
* **Warm-up** may precede every kind but `adafactor`: a ramp of power `warmup_power` to the peak.
  The kind's own step 0 is the end of the warm-up, and its lengths count from there; a length of
  "the whole run" is the rest of the run.
* **Skipped updates** (an overflow of the loss scale, a loss that is not finite) count as steps. The
  schedule is a function of the data seen; otherwise two runs that skip differently would end with
  different rates. `TrainState.skipped` counts them.
* **Memory.** Only kinds that depend on a score have state: in `TrainState.memory`, which changes
  only in `observe`, after an evaluation.
* **Groups.** `lr` is the rate of a parameter group without a learning rate of its own; the others
  are in proportion to it at every step, minima included.

To add a kind: one module with one public `SchedulerOption` (`WarmedUp` adds a warm-up,
`MinLrSchedule` also a minimum), and conf/scheduler/<kind>.yaml with all its values. Kinds that
differ only by values are presets of one kind.
"""
