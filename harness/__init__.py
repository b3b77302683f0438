"""The evaluator: plans cases, runs them against upscaler backends over gRPC, scores and judges the outputs."""

__version__ = "0.1.0"
