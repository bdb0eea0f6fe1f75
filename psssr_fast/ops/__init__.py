"""The operators of the runtime: one module per op, each holding its contract and its reference."""
