"""The ClientApp of the no-op app: it gives the arrays back at once."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Give the arrays back, each changed by one addition.

    Flower knows arrays by their digest: unchanged, or changed alike at all nodes, they would not be sent.
    """
    own = context.node_id % 1000 / 1e6
    arrays = ArrayRecord({name: Array(array.numpy() + own) for name, array in message.content["arrays"].items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, _context: Context) -> Message:
    """Say nothing in particular."""
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
