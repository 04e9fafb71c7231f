"""What the challenge would say of a segmentation: accuracy, efficiency, a report. Never imported by `app`."""
