"""The fairness audit: measures per demographic group, their tests, and the instruments that read the groups."""
