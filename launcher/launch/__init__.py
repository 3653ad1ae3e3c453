"""Starting the ranks of a run, watching them, and what a rank does first.

`_start` runs in the launching process: it starts the program that the launch option names, once for
each rank. `_supervisor` forwards signals and ends the ranks when one has failed, `_watch` finds the
rank that hangs, `_outcome` makes a result or an error of what the ranks recorded. `_worker` is the
program that every rank executes; it reads RUN_DIR/config.json and nothing else. To add a way of
launching: `launcher/launch/<kind>.py` with a `LaunchOption`, and `conf/launch/<kind>.yaml`.
"""
