"""Which answer of the API leads to which next request: the links of its OpenAPI document.

A client, or a tester, follows them from a plan to a proposal, its run, and that run's evidence without knowing more of
the API than its document.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_HERE = "$request.path."
_BODY = "$response.body#/"


@dataclass(frozen=True)
class _Link:
    """A next request, by the name of its route.

    Attributes:
        to: The route.
        takes: Its parameters, each as an expression over the answer (OpenAPI, "Runtime Expressions").
        body: Its body, of such expressions.
    """

    to: str
    takes: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None


def _each(routes: str, **takes: str) -> tuple[_Link, ...]:
    return tuple(_Link(to, takes) for to in routes.split())


_OF_A_PROPOSAL = (
    *_each("show_proposal answer", proposal_id=f"{_BODY}id"),
    _Link("start_run", body={"proposal": f"{_BODY}id"}),
)
_OF_A_RUN = (
    *_each("show_run list_events stream_run suspend_run resume_run verify", run_id=f"{_BODY}run_id"),
    _Link("compare_runs", {"run": f"{_BODY}run_id"}),
)
_SAME_RUN = {"run_id": f"{_HERE}run_id"}
_LINKS: Mapping[str, tuple[_Link, ...]] = MappingProxyType(
    {
        "list_plans": (
            _Link("preview", body={"text": f"{_BODY}0/text"}),
            _Link("propose", body={"text": f"{_BODY}0/text"}),
        ),
        "propose": _OF_A_PROPOSAL,
        "show_proposal": _OF_A_PROPOSAL,
        "answer": _OF_A_PROPOSAL,
        "list_proposals": (
            _Link("show_proposal", {"proposal_id": f"{_BODY}items/0/id"}),
            _Link("list_proposals", {"cursor": f"{_BODY}next"}),
        ),
        "start_run": _OF_A_RUN,
        "show_run": _OF_A_RUN,
        "suspend_run": _OF_A_RUN,
        "resume_run": _OF_A_RUN,
        "list_runs": (
            _Link("show_run", {"run_id": f"{_BODY}items/0/run_id"}),
            _Link("list_runs", {"cursor": f"{_BODY}next"}),
        ),
        "list_events": (_Link("list_events", {**_SAME_RUN, "after": f"{_BODY}0/seq"}),),
        # Evidence is there when a run has ended, so it is what `verify` leads to and not what a start does.
        "verify": (
            *_each("export roots", **_SAME_RUN),
            _Link("list_entries", {**_SAME_RUN, "owner": "coordinator"}),
        ),
        "list_entries": (_Link("prove", {**_SAME_RUN, "owner": f"{_HERE}owner", "position": f"{_BODY}0/position"}),),
        "list_holders": _each(
            "show_holder show_policy list_uses list_decisions list_pending ask_first stop_use",
            holder_id=f"{_BODY}0/holder",
        ),
        "list_pending": (_Link("answer", {"holder_id": f"{_HERE}holder_id", "proposal_id": f"{_BODY}0"}),),
        "show_policy": (
            _Link(
                "edit_policy",
                {"holder_id": f"{_HERE}holder_id", "If-Match": "$response.header.ETag"},
                body={"text": f"{_BODY}text"},
            ),
        ),
        "issue_token": _each("revoke_token", token_id=f"{_BODY}id"),
    }
)


def links_of(route: str) -> dict[str, Any]:
    """The links of the answer of a route that did what was asked, as they stand in the document."""
    found = {}
    for link in _LINKS.get(route, ()):
        entry: dict[str, Any] = {"operationId": link.to}
        if link.takes:
            entry["parameters"] = dict(link.takes)
        if link.body is not None:
            entry["requestBody"] = dict(link.body)
        found[link.to] = entry
    return found
