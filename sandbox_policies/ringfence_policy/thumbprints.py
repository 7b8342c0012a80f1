"""Comparing a root key's thumbprint with what its owner read out, before the key is kept."""

import typer

from ringfence_policy.cli import is_asked
from ringfence_policy.errors import TrustRefused, UsageError
from ringfence_policy.identity import PublicKey


def compare(root: PublicKey, said: str | None, *, whose: str, as_json: bool) -> None:
    """Return where a root key is the one that its owner read out, and nowhere else.

    Args:
        root: The key, as it came in a file.
        said: Its thumbprint as it was read out; None asks the person at the terminal.
        whose: The owner, as people are told.
        as_json: Whether the answer is for a program, which is asked nothing.

    Raises:
        TrustRefused: It is another thumbprint, or the person at the terminal did not say that it is the same.
        UsageError: Nobody compared it.
    """
    if said is not None:
        if "".join(said.split()) != root.thumbprint:
            raise TrustRefused(
                "the thumbprint is another one",
                expected=said.strip(),
                got=root.thumbprint,
                next_step=f"do not go on: ask {whose}, by a number you know, which key it sent",
            )
        return
    if as_json or not is_asked():
        raise UsageError(
            f"nobody compared the thumbprint of {whose}",
            expected=f"--thumbprint T with what {whose} read out to you",
            got=f"a root key with the thumbprint {root.thumbprint}",
            next_step="call them on a number you know, and let them read it to you",
        )
    typer.echo(f"The root key of {whose} has the thumbprint {root.thumbprint}")
    typer.echo("Call them on a number that you know from elsewhere, and let them read theirs to you.")
    if not typer.confirm("Is it the one above, every character of it?"):
        raise TrustRefused(
            "the thumbprint was not confirmed, and nothing was kept",
            expected="the thumbprint that was read to you",
            got=root.thumbprint,
            next_step="find out, by a number you know, which key they sent",
        )
