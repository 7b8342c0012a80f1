"""schemathesis along the API's own links: proposal, answer, run, evidence, token; every answer is a documented one.

`RINGFENCE_FUZZ_EXAMPLES` raises the number of workflows from the few that fit into every run of the tests; `-rP` then
shows what was answered.
"""

from collections import Counter

import pytest
import structlog
from api_server import OWN, served_api
from fuzzing import EXAMPLES, schema
from hypothesis import HealthCheck, Phase, settings

from ringfence_server.control.actor import Role
from ringfence_server.control.api.openapi import ACT
from ringfence_server.control.permissions import ALLOWED, Act

# A stream lasts as long as its run, and a workflow would wait for it: test_streams.py is about streams.
LINKED = schema(makes_up_credentials=False).exclude(operation_id="stream_run")
WORKFLOWS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
    derandomize=EXAMPLES <= 10,
    report_multiple_bugs=False,
)


def whoever_may(operation):
    """The role that carries a workflow on."""
    act = operation.definition.raw.get(ACT)
    allowed = ALLOWED[Act(act)] if act else frozenset(Role)
    return next(role for role in (Role.COORDINATOR, Role.HOLDER, Role.ADMINISTRATOR, *Role) if role in allowed)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("workflows")) as api:
        api.finished_run()
        yield api


@pytest.mark.parametrize("who", ["whoever may", *Role])
def test_every_answer_along_a_workflow_is_one_that_is_documented(api, who):
    answered = Counter()

    class Workflow(LINKED.as_state_machine()):
        def setup(self):  # of each workflow: one before may have withdrawn the tokens
            self.tokens = {role: api.token(role, OWN if role is Role.HOLDER else None) for role in Role}

        def get_call_kwargs(self, case):
            role = whoever_may(case.operation) if who == "whoever may" else who
            return {"base_url": api.base, "headers": {"Authorization": f"Bearer {self.tokens[role]}"}}

        def after_call(self, response, case):
            super().after_call(response, case)
            answered[case.operation.definition.raw["operationId"], response.status_code] += 1

    Workflow.run(settings=WORKFLOWS)
    told = " ".join(f"{name}:{status}={count}" for (name, status), count in sorted(answered.items()))
    structlog.get_logger().info("workflows", who=who, answers=answered.total(), told=told)
    assert any(status < 300 for _, status in answered)
