"""The one error that a user's input can cause."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line that names what is wrong, where, and what to do about it. The command
    line prints it without a traceback and exits with code 2.
    """
