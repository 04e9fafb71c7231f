"""One self-contained HTML file that tells a person what a run did: `python -m evaluation.report RUN -o report.html`."""
