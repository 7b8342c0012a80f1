"""schemathesis over the whole API: whatever it sends, the answer is one that the OpenAPI document promises.

`RINGFENCE_FUZZ_EXAMPLES` raises the number of requests per route from the few that fit into every run of the tests.
"""

import os

import pytest
import schemathesis
from api_server import served_api
from hypothesis import HealthCheck, Phase, settings
from schemathesis.config import SchemathesisConfig

from ringfence_server.control.actor import Role
from ringfence_server.control.api.app import create_api
from ringfence_server.control.api.openapi import describe

EXAMPLES = int(os.environ.get("RINGFENCE_FUZZ_EXAMPLES", "4"))
MODEST = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    derandomize=EXAMPLES <= 10,
)
# A text that is no plan or no policy, or a change without If-Match, is refused although its JSON is right: no JSON
# schema says what TOML says.
BEYOND_SCHEMAS = ["2xx", "401", "403", "404", "409", "422", "428", "5xx"]
CONFIG = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": {"expected-statuses": BEYOND_SCHEMAS}}})


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("fuzzed")) as api:
        api.finished_run()
        yield api


schema = schemathesis.openapi.from_dict(describe(create_api()), config=CONFIG)


@schema.parametrize()
@MODEST
def test_every_answer_is_one_that_is_documented(case, api):
    for role in (Role.COORDINATOR, Role.HOLDER, Role.ADMINISTRATOR):
        case.call_and_validate(base_url=api.base, headers={"Authorization": f"Bearer {api.tokens[role]}"})
