"""BigGAN (Brock et al., arXiv 1809.11096): a class-conditional generator, sized for CPUs."""
