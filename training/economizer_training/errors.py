"""What goes wrong in a training job and is told to its user in a line."""


class TrainingError(Exception):
    """A job that cannot be done; the message names what was found, where, and what would be right."""
