"""What the tests that fuzz the API have in common: how many requests, of which document, held to which checks."""

import os

import schemathesis
from schemathesis.config import SchemathesisConfig

from ringfence_server.control.api.app import create_api
from ringfence_server.control.api.openapi import describe

EXAMPLES = int(os.environ.get("RINGFENCE_FUZZ_EXAMPLES", "4"))
# What an answer to a request that fits its schema may be: roles, names that are none, and the state of things refuse.
_ACCEPTED = ["2xx", "401", "403", "404", "409"]


def _beyond_schemas(*statuses, routes):
    accepted = {"positive_data_acceptance": {"expected-statuses": [*_ACCEPTED, *statuses]}}
    return {"include-operation-id": list(routes), "checks": accepted}


# Every check is on. What no JSON schema says, and what is therefore refused although the JSON is right:
CONFIG = {
    "checks": {
        "positive_data_acceptance": {"expected-statuses": _ACCEPTED},
        # A made-up If-Match is 412, or 428 where it was left out, whatever else is wrong with the request.
        "negative_data_rejection": {
            "expected-statuses": ["400", "401", "403", "404", "405", "409", "412", "415", "422", "428"]
        },
    },
    "operations": [
        # that a text is a plan or a policy, and that the version of a policy rises;
        _beyond_schemas("422", routes=("preview", "propose")),
        _beyond_schemas("412", "422", "428", routes=("edit_policy",)),
        # that a holder belongs to one role alone, and a reason to every stop but to its end.
        _beyond_schemas("422", routes=("issue_token", "stop_use")),
    ],
}


def schema(*, makes_up_credentials):
    """The document to fuzz. Made-up tokens and cookies test the sign-on, and end every workflow where it begins."""
    generation = {"with-security-parameters": makes_up_credentials}
    config = SchemathesisConfig.from_dict({**CONFIG, "generation": generation})
    return schemathesis.openapi.from_dict(describe(create_api()), config=config)
