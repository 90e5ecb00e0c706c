"""Training: `reg4pru train` (Accelerate) and `reg4pru finetune` (Trainer), on one schedule and one set of samples."""
