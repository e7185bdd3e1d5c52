"""The one error that the command line shows to a person without a traceback."""


class UserError(Exception):
    """What went wrong and what to do about it, in one message."""
