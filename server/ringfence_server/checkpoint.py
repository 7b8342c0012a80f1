"""A run's committed rounds on disk: the model, the strategy's own state, and what happened so far.

runs/<run id>/run.json                      what the run is: plan as signed, seed, attempts
runs/<run id>/models/round-0000.safetensors every committed model, 0000 being the one it started from
runs/<run id>/strategy.safetensors          arrays that the strategy keeps between rounds (momentum)
runs/<run id>/checkpoint.json               the last committed round; replaced in one step, so it is true or older
runs/<run id>/trained.json                  what happened in all rounds; from here on nothing is trained again
runs/<run id>/measured.json                 how the final model did; from here on nothing is measured again
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import Strategy
from safetensors.numpy import load, save

from ringfence_policy.durable import write_durably
from ringfence_policy.score_histogram import Rows
from ringfence_server.outcome import RoundOutcome

Arrays = Mapping[str, npt.NDArray[np.float32]]
_SEPARATOR = "\x1f"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: The run's directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save_model(self, round_number: int, arrays: Arrays) -> Path:
        """Keep a committed model; round 0 is the one the run starts from."""
        path = self._model(round_number)
        write_durably(path, save(dict(arrays)))
        return path

    def save_round(
        self,
        round_number: int,
        arrays: Arrays,
        *,
        strategy: Strategy,
        outcomes: list[RoundOutcome],
        record: Mapping[str, Any],
    ) -> None:
        """Make a round durable. The checkpoint file comes last: until it is there, the round did not happen."""
        self.save_model(round_number, arrays)
        state, numbers = strategy_state(strategy)
        write_durably(self.directory / f"strategy-{round_number:04d}.safetensors", save(state))
        document = {
            "round": round_number,
            "committed": [*self.committed_rounds(), round_number],
            "numbers": numbers,
            "record": dict(record),
            "outcomes": [outcome.to_document() for outcome in outcomes],
        }
        write_durably(self.directory / "checkpoint.json", json.dumps(document).encode())
        for older in self.directory.glob("strategy-*.safetensors"):
            if older.name != f"strategy-{round_number:04d}.safetensors":
                older.unlink()

    def last(self) -> dict[str, Any] | None:
        """The last checkpoint, or None before the first round was committed."""
        path = self.directory / "checkpoint.json"
        if not path.exists():
            return None
        document: dict[str, Any] = json.loads(path.read_text())
        return document

    def committed_rounds(self) -> list[int]:
        """The numbers of the committed rounds, in order."""
        last = self.last()
        return [] if last is None else list(last["committed"])

    def save_trained(self, outcomes: list[RoundOutcome]) -> None:
        """Make the end of training durable: what is averaged, measured and released is settled from here on."""
        document = [outcome.to_document() for outcome in outcomes]
        write_durably(self.directory / "trained.json", json.dumps(document).encode())

    def trained(self) -> list[RoundOutcome] | None:
        """What happened in all rounds, or None before training ended."""
        path = self.directory / "trained.json"
        return [RoundOutcome.from_document(one) for one in json.loads(path.read_text())] if path.exists() else None

    def save_measured(self, measured: Mapping[str, Rows]) -> None:
        """Make the final measure durable: a private one is paid for once."""
        document = {holder: [list(row) for row in rows] for holder, rows in measured.items()}
        write_durably(self.directory / "measured.json", json.dumps(document).encode())

    def measured(self) -> dict[str, Rows] | None:
        """The final measure by holder, or None before the model was measured."""
        path = self.directory / "measured.json"
        if not path.exists():
            return None
        return {holder: (rows[0], rows[1]) for holder, rows in json.loads(path.read_text()).items()}

    def model(self, round_number: int) -> dict[str, npt.NDArray[np.float32]]:
        """A committed model."""
        return dict(load(self._model(round_number).read_bytes()))

    def restore_strategy(self, strategy: Strategy) -> None:
        """Give a new strategy the state of the one that committed the last round."""
        last = self.last()
        if last is None:
            return
        state = load((self.directory / f"strategy-{last['round']:04d}.safetensors").read_bytes())
        restored: dict[str, dict[str, npt.NDArray[Any]]] = {}
        for key, array in state.items():
            attribute, name = key.split(_SEPARATOR, 1)
            restored.setdefault(attribute, {})[name] = array
        for attribute, arrays in restored.items():
            setattr(strategy, attribute, arrays)
        for attribute, number in last["numbers"].items():
            setattr(strategy, attribute, number)

    def last_rounds(self, share: float) -> list[int]:
        """The last `share` of the committed rounds, at least the last one."""
        rounds = self.committed_rounds()
        return rounds[-max(1, math.ceil(len(rounds) * share)) :]

    def average(self, rounds: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """The mean of committed models, as float32.

        Averaging iterates is post-processing: it reveals nothing that the rounds have not (Polyak and Juditsky 1992).
        """
        models = [self.model(number) for number in rounds]
        return {
            name: np.mean([model[name].astype(np.float64) for model in models], axis=0).astype(array.dtype)
            for name, array in models[0].items()
        }

    def _model(self, round_number: int) -> Path:
        return self.directory / "models" / f"round-{round_number:04d}.safetensors"


def strategy_state(strategy: Strategy) -> tuple[dict[str, npt.NDArray[Any]], dict[str, float]]:
    """What a strategy keeps between rounds: its attributes that are arrays by name, and its plain numbers.

    Flower has no interface for this. All strategies that a plan can name keep nothing else.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    numbers: dict[str, float] = {}
    for attribute, value in vars(strategy).items():
        if isinstance(value, dict) and value and all(isinstance(item, np.ndarray) for item in value.values()):
            for name, array in value.items():
                arrays[f"{attribute}{_SEPARATOR}{name}"] = np.ascontiguousarray(array)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[attribute] = value
    return arrays, numbers
