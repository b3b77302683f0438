"""Upscalers that others trained, served as they are: one module a family, `files` reads what they bring."""
