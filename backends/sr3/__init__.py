"""SR3: super-resolution by iterative refinement (Saharia et al., arXiv 2104.07636)."""
