"""trainctl: a training launcher driven by one resolved config.

Packages from top to bottom (imports run downward only):

    cli         verbs; the only place where an error becomes an exit status
    api         load_config, run, resume, verify, Run: trainctl from Python
    plan        memory, speed and traffic of a config, without allocating weights
    verify      trains a config on several engines and compares them with one process
    launch      starts the ranks of a run and watches them; start-up code of a rank
    training    builds a run and executes it: training loop, data order, evaluation, metrics
    config      composes the config with Hydra, once; validation, rules, origins of values
    adapter, optimizer, scheduler, precision, activation, compile, ema, batching, accumulation,
    parallelism, model, task, data, observer, checkpoint, logging     one package per config group,
                one module per kind
    gradient_accumulator     weighted accumulation for a custom loop
    blocks      finds the layers that are sharded, recomputed or compiled one by one
    registry    finds the kinds of a group
    suggest     suggestions for misspelt words
    contracts   the base class of each group, and the types that groups exchange
    run_dir     file names in a run directory
    errors      exceptions and their exit statuses
"""

__version__ = "0.1.0"
