"""The training kit: `python -m backends.training CONFIG` trains, resumes, and writes weights with their card."""
