"""The app: a photograph in the browser, and what pruning does to it."""
