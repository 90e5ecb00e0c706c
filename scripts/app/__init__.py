"""The app: an image in the browser, and what pruning does to it."""
