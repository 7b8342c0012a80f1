"""Carries each message of a SuperNode to the stand-in agent of its holder, and the reply back. In tests only."""

import os
from multiprocessing.connection import Client

from flwr.clientapp import ClientApp


def _carry(message, context):
    with Client(os.environ["RINGFENCE_STAND_IN_AGENT"], family="AF_UNIX") as agent:
        agent.send((message, context.node_id, context.run_id))
        return agent.recv()


app = ClientApp()
for register in (app.train(), app.evaluate(), *map(app.query, ("propose", "offer", "release", "evidence"))):
    register(_carry)
