"""The trainer's process: it raises walls around itself, tries them, and then does what its agent asks, until it closes.

Started by `trainer_link` as one of three. The *reader* counts records and knows no model. The *examiner* builds a model
that is code of somebody's own, tries its noise, and can open no record. The *trainer* builds models too, and opens
records for a use that was permitted and charged. Errors are told by their code; their words go to standard error, which
the agent keeps for the data officer.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from ringfence_client.attacks import attack_walls, breaches
from ringfence_client.trainer_wire import Frame, order_in, receive, result_frame, send
from ringfence_client.walls import Limits, code_paths, raise_walls
from ringfence_client.workroom import FAILED_USE
from ringfence_policy.errors import Fault, RingfenceError
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.plan import TrainingPlan

Part = Literal["reader", "examiner", "trainer"]
Answer = Callable[[Frame], Frame]

_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Serve one agent until it closes its pipe."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    limits = Limits(memory_bytes=options.memory_mib << 20, cpu_seconds=options.cpu_seconds)
    files = [path for path in options.file if path.exists()]
    raise_walls(readable=[*code_paths(), *files], limits=limits)
    tried = attack_walls(forbidden_file=options.forbidden, limits=limits, readable=files)
    # Torch and Polars start threads when they are loaded, which walls that were raised later would not hold.
    answers = (_counting if options.part == "reader" else _training)(options.data, options.salt)
    send(options.say, Frame({"said": "ready", "breaches": dict(breaches(tried))}))
    while (frame := receive(options.hear)) is not None:
        send(options.say, _answered(answers, frame))
    return 0


def _answered(answers: Mapping[str, Answer], frame: Frame) -> Frame:
    ask = str(frame.words.get("ask"))
    try:
        return answers[ask](frame)
    except RingfenceError as error:
        _log.warning("%s: %s", ask, error)
        return Frame({"said": "refused", "code": error.code})
    except Exception:  # noqa: BLE001 -- its words are kept here; the agent is told that it failed and no more
        _log.exception("%s failed", ask)
        return Frame({"said": "refused", "code": Fault.code})


def _counting(directory: Path, salt: str) -> dict[str, Answer]:
    from ringfence_client.holder_records import HolderRecords  # noqa: PLC0415 -- Polars

    records = HolderRecords(directory, salt=salt)

    def count(frame: Frame) -> Frame:
        data = records.whole(TrainingPlan.from_document(frame.words["plan"]))
        return Frame({"said": "facts", "records": data.records, "fingerprint": data.fingerprint})

    return {"facts": count}


def _training(directory: Path, salt: str) -> dict[str, Answer]:
    from ringfence_client.holder_records import HolderRecords  # noqa: PLC0415 -- Polars
    from ringfence_client.open_workroom import OpenWorkroom  # noqa: PLC0415 -- trainers, which the reader does without
    from ringfence_client.trainers import trainer_named  # noqa: PLC0415 -- as above

    room = OpenWorkroom(HolderRecords(directory, salt=salt))

    def examine(frame: Frame) -> Frame:
        found = room.examine(TrainingPlan.from_document(frame.words["plan"]))
        shapes = {name: list(shape) for name, shape in found.shapes.items()}
        return Frame({"said": "examined", "shapes": shapes, "trainer": found.trainer})

    def check(frame: Frame) -> Frame:
        words = frame.words
        room.check_training(
            words["run_id"],
            TrainingPlan.from_document(words["plan"]),
            DpMechanism.from_document(words["mechanism"]),
            seed=words["seed"],
        )
        return Frame({"said": "sound"})

    def load(frame: Frame) -> Frame:
        trainer_named(frame.words["trainer"])
        return Frame({"said": "loaded"})

    def use(frame: Frame) -> Frame:
        (result,) = OpenWorkroom.carry_out([(room, order_in(frame))])
        return Frame({"said": "failed", "why": FAILED_USE}) if isinstance(result, Fault) else result_frame(result)

    return {"examine": examine, "check": check, "load": load, "use": use}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A data holder's trainer. Started by its agent.")
    parser.add_argument("part", choices=["reader", "examiner", "trainer"])
    parser.add_argument("--data", type=Path, required=True, help="the directory with the data file")
    parser.add_argument("--file", type=Path, action="append", default=[], help="a data file that may be read")
    parser.add_argument("--forbidden", type=Path, required=True, help="a file of the holder that must not be readable")
    parser.add_argument("--salt", required=True, help="names the dataset's own split")
    parser.add_argument("--memory-mib", type=int, required=True)
    parser.add_argument("--cpu-seconds", type=int, required=True)
    parser.add_argument("--hear", type=int, required=True, help="the pipe on which the agent asks")
    parser.add_argument("--say", type=int, required=True, help="the pipe on which it is answered")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
