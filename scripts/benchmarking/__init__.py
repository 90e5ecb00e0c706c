"""Time, operations and memory of models; keep rates for a budget: `reg4pru benchmark` and `tune`."""
