"""schemathesis over the whole API: whatever it sends, the answer is one that the OpenAPI document promises.

`RINGFENCE_FUZZ_EXAMPLES` raises the number of requests per route from the few that fit into every run of the tests.
"""

import pytest
from api_server import served_api
from fuzzing import EXAMPLES, schema
from hypothesis import HealthCheck, Phase, settings

from ringfence_server.control.actor import Role

MODEST = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    derandomize=EXAMPLES <= 10,
)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("fuzzed")) as api:
        api.finished_run()
        yield api


@schema(makes_up_credentials=True).parametrize()
@MODEST
def test_every_answer_is_one_that_is_documented(case, api):
    for role in (Role.COORDINATOR, Role.HOLDER, Role.ADMINISTRATOR):
        case.call_and_validate(base_url=api.base, headers={"Authorization": f"Bearer {api.tokens[role]}"})
