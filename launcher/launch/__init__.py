"""Starting the ranks of a run, waiting for them, and what a rank does first.

`start` runs in the launching process: it locks the run directory, starts the program that the
launch option names, forwards signals and turns the ranks' recorded outcome into a result or an
error. `worker` is the program that every rank executes; it reads RUN_DIR/config.json and nothing
else. To add a way of launching: `launcher/launch/<kind>.py` with a `LaunchOption`, and
`conf/launch/<kind>.yaml`.
"""
