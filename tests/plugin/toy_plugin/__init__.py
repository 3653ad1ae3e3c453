"""A package of a third party: one module and one YAML for each kind that it adds."""
