"""The SuperNode's process, which does not outlive the agent that started it."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from faults import state_of

from deployment import environment, free_port, wait_until
from ringfence_policy.transport_keys import make_authority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")

AGENT = """
import os, subprocess, sys, threading
child = subprocess.Popen(
    [sys.executable, "-P", "-m", "ringfence_client.supernode_child", str(os.getpid()), *sys.argv[1:]],
    stdout=sys.stderr, start_new_session=True,
)
print(child.pid, flush=True)
threading.Event().wait()
"""


def test_a_supernode_and_what_it_started_end_when_their_agent_is_killed(tmp_path):
    authority = tmp_path / "authority.pem"
    authority.write_text(make_authority("trees", now=datetime.now(UTC)).certificate)
    options = ("--superlink", f"127.0.0.1:{free_port()}", "--root-certificates", str(authority))
    place = ("--host", "127.0.0.1", "--port", str(free_port()))
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", AGENT, *options, *place],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(FLWR_HOME=str(tmp_path)),
        ) as agent,
    ):
        supernode = int(agent.stdout.readline())
        try:
            wait_until("the SuperNode has started others", lambda: children_of(supernode), seconds=90)
            others = children_of(supernode)
            os.kill(agent.pid, signal.SIGKILL)
            agent.wait()
            wait_until(
                "all of them are gone", lambda: all(state_of(one) in "ZX" for one in (supernode, *others)), seconds=60
            )
        finally:
            agent.kill()
            if state_of(supernode) not in "ZX":
                os.killpg(supernode, signal.SIGKILL)


def children_of(process_id):
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
