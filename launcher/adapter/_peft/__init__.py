"""LoRA and its relatives through peft."""
