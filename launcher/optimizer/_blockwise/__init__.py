"""Adafactor, LAMB and StableAdamW, in cache-sized blocks, with sums over shards."""
