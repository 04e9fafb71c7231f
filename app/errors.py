"""What the program tells its user in one line: a bad input, an output that cannot be written, wrong use."""


class InputError(Exception):
    """A CT that cannot be segmented. `str` is one line that names the file and the cause."""


class OutputError(OSError):
    """A mask that could not be written. `str` is one line that names the file and the cause."""


class UsageError(Exception):
    """Wrong use of the command line; nothing was done. The message says what and the likely cause."""
