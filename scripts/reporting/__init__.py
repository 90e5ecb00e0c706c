"""Tables, figures and panels, for whoever writes results."""
