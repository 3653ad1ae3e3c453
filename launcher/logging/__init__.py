"""Where the numbers of a run go: files that survive a kill, and what a person watches.

What lives here: sinks, which take one row per logged step (`contracts.Row`) and never ask for more;
the one console of the process. What may not: when a step is logged and what its row holds
(training.metrics), and anything that reads a tensor.

Rules that every sink keeps: a row is in the file, for a process that is killed the next moment,
when `write` returns; a resumed run leaves no row of a step that it has not done; a number that
there is not is left out or `null`, never NaN.

Adding a sink for everyone: a module here, a field in `standard.py`. Adding another set of sinks: a
module `launcher/logging/<kind>.py` with one LoggingOption, and `conf/logging/<kind>.yaml`.
"""
