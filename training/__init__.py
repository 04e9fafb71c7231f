"""Cross pseudo supervision: CT folders to shipped weights. Imports app; the image holds none of it."""
