"""Where images and masks come from: one file per kind of source."""
