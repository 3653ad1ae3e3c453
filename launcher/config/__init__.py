"""Compose, validate and explain a config: from command line and YAML to one frozen `RunConfig`.

`load.load_config` is the only entry: Hydra composes (`compose`), the option classes that
`launcher.registry` finds validate (`schema`), and `rules` collects the problems of the whole
config, most of them from `Option.problems`. A `ConfigError` has every problem, each with the file
and line, or the word, that set it. `derive` computes derived values, such as the number of steps.
Ranks read config.json with `schema.RunConfig` and never import Hydra; nothing here imports torch at
module level.

A constraint of one kind belongs in its `problems`. To add one that belongs to no option, write a
generator in `rules` and name it in its `RULES`. To add a top-level key, give it a field in
`schema`, a value in conf/config.yaml and a line in the table of `resume_rules`.
"""
