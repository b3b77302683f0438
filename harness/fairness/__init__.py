"""The fairness audit: what upscaling does to each demographic group, and what the test set allows to be said of it."""
