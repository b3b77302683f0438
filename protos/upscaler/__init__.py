"""Package upscaler."""
