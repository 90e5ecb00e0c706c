"""What keeps the repository itself in order: rendered pages, and transformers' own tests against our model."""
