"""One module for each outside world; no edge imports another."""
