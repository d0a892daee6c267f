"""What goes wrong in a compression job and is told to its user in a line."""


class CompressionError(Exception):
    """A job that cannot be done; the message names what was found, where, and what would be right."""


class GateFailed(CompressionError):
    """A variant that the gate does not promote; the message says which bound failed and by how much."""

    exit_code = 3
