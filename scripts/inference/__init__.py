"""From a checkpoint to numbers and pictures: `reg4pru evaluate`, `predict` and `export`."""
