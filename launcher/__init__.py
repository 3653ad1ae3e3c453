"""trainctl: a training launcher driven by one resolved config.

Packages from top to bottom (imports run downward only):

    cli         verbs; the only place where an error becomes an exit status
    api         load_config, run, resume, Run: trainctl from Python
    launch      starts the ranks of a run and watches them; what a rank does first
    training    the runner that builds a run, the loop that executes it, its state
    config      Hydra composes here, once; validation, rules, provenance
    optimizer, scheduler, precision, accumulation, parallelism, model, task, data,
    observer, checkpoint, logging     one package per config group, one module per kind
    gradient_accumulator     weighted accumulation for a custom loop
    registry    finds the kinds of a group
    suggest     the closest words to a misspelt one
    contracts   what each group must offer, and the types that all packages share
    run_dir     the names of the files of a run
    errors      the exceptions and the exit status of each
"""

__version__ = "0.1.0"
