"""The exceptions that mean: the person at the keyboard can mend this."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in input, configuration or environment.

    The message is one line: what was got, what was expected, what to do. The scripts print it without a
    traceback and exit with status 1; library code raises it like any ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class DamagedFile(UserError):
    """A file that is not as it was written: empty, cut short, or with checksums that do not agree.

    As against a file that is missing, of another kind or not permitted: another copy of it, or an earlier file, can
    stand in for it.

    Args:
        fault: The beginning of the message: which file, and what is the matter with it.
        remedy: The end of the message, what to do; ``fault`` and it are joined by a semicolon.

    Attributes:
        fault: As given, for a message with another remedy.
    """

    def __init__(self, fault: str, remedy: str = "") -> None:
        super().__init__(f"{fault}; {remedy}" if remedy else fault)
        self.fault = fault
