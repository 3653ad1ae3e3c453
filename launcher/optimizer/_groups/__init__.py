"""Parameter groups, and the fields that several optimizers share."""
