"""The one exception that means: the person at the keyboard can mend this."""


class UserError(ValueError):
    """A mistake in input, configuration or environment.

    The message is one line: what was got, what was expected, what to do. The scripts print it without a
    traceback and exit with status 1; library code raises it like any ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
