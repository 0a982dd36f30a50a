"""Text that others wrote, made harmless for terminals and shells."""


def printable(text: object) -> str:
    r"""A value on one line, with control and format characters as escapes such as \x1b.

    Otherwise the prompt of somebody else's run could move a terminal's cursor, or add a line to a
    command that is copied.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in str(text)
    )
