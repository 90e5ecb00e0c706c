"""Time, operations and memory: `reg4pru benchmark`."""
