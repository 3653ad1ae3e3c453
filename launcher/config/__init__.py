"""From the command line and YAML to one frozen `RunConfig`: composing, validating, explaining.

`door.checked` is the only way in: Hydra composes (`compose`, `hydra_ext`), the option classes that
`launcher.registry` finds validate (`schema`), `rules` collects what is wrong with the whole, most
of it from `Option.problems`, and a `ConfigError` carries every problem, with the file and line or
the word that set it. `derive` computes what follows from a config. Ranks read config.json with
`schema.RunConfig` and never import Hydra; nothing here imports torch at module level.

A constraint of one kind belongs in its `problems`. To add one that belongs to no option, write a
generator in `rules` and name it in its `RULES`. To add a top-level key, give it a field in
`schema`, a value in conf/config.yaml and a line in the table of `resume_rules`.
"""
