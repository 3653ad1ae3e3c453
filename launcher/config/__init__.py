"""From the command line and YAML to one frozen `RunConfig`: composing, validating, explaining.

`door.checked` is the only way in: Hydra composes (`compose`, `hydra_ext`), the option classes that
`registry` finds validate (`schema`), `rules` looks across groups, and a `ConfigError` carries
everything that is wrong, with the file and line or the word that set it. `derive` computes what
follows from a config. Ranks read config.json with `schema.RunConfig` and never import Hydra;
nothing here imports torch at module level.

To add a rule, write a generator in `rules` and name it in its `RULES`. To add a top-level key, give
it a field in `schema`, a value in conf/config.yaml and a line in the table of `resume_rules`.
"""
