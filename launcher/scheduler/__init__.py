"""How the learning rate moves over the run: pure functions of the step, without torch.

`build` resolves all lengths once, against the run's `Horizon`, and gives a `Schedule`: `lr(step,
memory)` is the rate of optimizer step `step`, the first being 0. It is defined past the end of the
run too; each kind says what it does there. Names, formulas and off-by-ones are those of
Transformers' `get_scheduler` and of torch's `lr_scheduler`; tests hold them to 1e-12.

* **Lengths** (`warmup_steps`, `decay_steps`, …) are steps (`300`), a fraction of the run (`0.05`,
  as in Transformers), or an amount with its unit: `5%`, `2 epochs`, `1000 samples`, `10M tokens`.
  What cannot fit the run is an error with the numbers.
* **Warm-up** may stand before every kind but `adafactor`: a ramp of power `warmup_power` to the
  peak. The kind's own step 0 is where the warm-up ends, and its lengths count from there; what
  fills "the run" fills what the warm-up leaves.
* **Skipped updates** (an overflow of the loss scale, a loss that is not finite) count as steps.
  The schedule is a function of the data seen, so a skipped update moves it no more and no less
  than an applied one; `TrainState.skipped` tells how many there were. Loops that hold the schedule
  back on a skip give two runs that skip differently different rates at the end.
* **Memory.** Nothing is remembered but by the kinds that watch a score: what they know lies in
  `TrainState.memory`, and changes only in `observe`, after an evaluation.
* **Groups.** `lr` is the rate of a parameter group without one of its own; the others are in
  proportion to it at every step, floors included.

To add a kind: one module with one public `SchedulerOption` (`WarmedUp` gives it a warm-up,
`Floored` a floor besides), and conf/scheduler/<kind>.yaml with all its values.
"""
