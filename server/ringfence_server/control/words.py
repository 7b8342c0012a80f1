"""What one person writes for others to read, whichever way it came: nothing in it that they cannot see."""

import re

from ringfence_policy.errors import UsageError

# Control characters but for tabs and line ends (PostgreSQL keeps no NUL), and those that turn the direction of what
# follows: text must not look like another text.
CONTROLS = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
_UNSEEN = re.compile(f"[{CONTROLS}]")


def check_words(text: str) -> None:
    """Refuse text with characters that nobody can see.

    Raises:
        UsageError: It has some.
    """
    if _UNSEEN.search(text):
        raise UsageError(
            "the text holds characters that nobody can see",
            expected="letters, marks, spaces and line ends",
            next_step="type it anew instead of pasting it",
        )
