"""The organizers' efficiency run on your own desk: `python -m evaluation.efficiency IMAGE INPUTS OUTPUTS`."""
