"""Errors that a user can put right."""


class UserError(Exception):
    """Something that a person can put right; shown as one sentence, without a traceback."""
