"""Learning-rate schedules: pure functions of the step, without torch.

Names, formulas and off-by-ones are those of Transformers' `get_scheduler` and torch's
`lr_scheduler`; tests compare them to 1e-12. A skipped update counts as a step. Only kinds that
depend on a score have state: in `TrainState.memory`, which changes only in `observe`.

To add a kind: one module with one public `SchedulerOption` (`WarmedUp` adds a warm-up,
`MinLrSchedule` also a minimum), and conf/scheduler/<kind>.yaml with all its values. Kinds that
differ only by values are presets of one kind.
"""

# Skipped updates count, because a schedule is a function of the data seen: two runs that skip
# differently would otherwise end with different rates.
