"""From the tables of a run to what people read: one HTML page, Markdown, JSON and CSV."""
