"""Errors that the user can correct."""


class UserError(Exception):
    """An error that the user can correct. Commands print its message without a traceback."""


class ArgumentError(UserError, ValueError):
    """An error of code that the user wrote, which a command prints as UserError and Python catches as ValueError."""
