"""Feed-forward upscalers: the generators of SRGAN and ESRGAN, and the regression baseline of SR3."""
