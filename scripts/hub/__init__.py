"""To and from the Hub: `reg4pru prepare` (data sets) and `reg4pru push` (checkpoints), and their cards."""
