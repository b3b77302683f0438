"""Cascaded diffusion models (Ho et al., arXiv 2106.15282): a class-conditional base and stages that enlarge."""
