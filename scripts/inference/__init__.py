"""From a checkpoint to numbers and result images: `reg4pru evaluate`, `predict` and `export`."""
