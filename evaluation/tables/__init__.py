"""The tables of the Markdown files, made from result files: `python -m evaluation.tables`."""
