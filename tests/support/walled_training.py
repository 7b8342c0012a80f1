"""A process that trains with every trainer, behind the walls or not, and prints a digest of each update.

`python walled_training.py inside|outside DATA FORBIDDEN`: DATA is a directory with data.csv and data.parquet in
directories of their own. What it prints is the same on both sides of the walls.
"""

import hashlib
import json
import sys
from pathlib import Path

from ringfence_client.attacks import attack_walls, breaches
from ringfence_client.walls import Limits, raise_walls

LIMITS = Limits(memory_bytes=2 << 30, cpu_seconds=120)
SCHEMA = """
title = "Sixty-four numbers"
[label]
column = "label"
positive_above = "0"
""" + "".join(
    f"""
[[columns]]
name = "f{number}"
kind = "number"
low = "-1"
high = "1"
"""
    for number in range(64)
)
SEVERAL = 3


def write_data(directory):
    """Write the same records as CSV and as Parquet, each in a directory of its own."""
    import numpy as np  # noqa: PLC0415 - not before the walls, in the process that has them
    import polars as pl  # noqa: PLC0415

    rng = np.random.default_rng(7)
    columns = {f"f{number}": rng.uniform(-1, 1, 60).round(6) for number in range(64)}
    frame = pl.DataFrame({**columns, "label": (rng.random(60) < 0.5).astype(int)})
    for name in ("csv", "parquet"):
        (directory / name).mkdir()
    frame.write_csv(directory / "csv/data.csv")
    frame.write_parquet(directory / "parquet/data.parquet")


def digests(directory):
    """Train, and name each update by its bytes."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from ringfence_client.bookkeeping_trainer import BookKeepingTrainer  # noqa: PLC0415
    from ringfence_client.cohort_trainer import CohortTrainer  # noqa: PLC0415
    from ringfence_client.datasource import load_dataset  # noqa: PLC0415
    from ringfence_client.models import code_digest, initial_arrays  # noqa: PLC0415
    from ringfence_client.noise import RehearsalNoise, SecureNoise, check_noise  # noqa: PLC0415
    from ringfence_client.opacus_trainer import OpacusTrainer  # noqa: PLC0415
    from ringfence_client.torch_kernel import TorchKernel  # noqa: PLC0415
    from ringfence_client.trainer import TrainingJob  # noqa: PLC0415
    from ringfence_policy.mechanism import DpMechanism  # noqa: PLC0415
    from ringfence_policy.schema import DatasetSchema  # noqa: PLC0415
    from ringfence_policy.strict_toml import parse_toml  # noqa: PLC0415
    from ringfence_policy.vocabulary import Relation, Unit  # noqa: PLC0415

    torch.set_num_threads(SEVERAL)
    schema = parse_toml(SCHEMA, DatasetSchema, source="schema.toml")
    data = load_dataset(directory / "parquet", schema)
    own = {
        name: {"kind": "module", "path": f"own_models:{name}", "code_digest": code_digest(f"own_models:{name}")}
        for name in ("Image", "Transformer", "Words")
    }
    found = {"csv": load_dataset(directory / "csv", schema).fingerprint, "parquet": data.fingerprint}
    for trainer, model in (
        (CohortTrainer(), {"kind": "logistic-regression"}),
        (CohortTrainer(), {"kind": "mlp", "hidden": (128, 64), "seed": 3}),
        (CohortTrainer(TorchKernel()), {"kind": "mlp", "hidden": (8,), "seed": 3}),
        (BookKeepingTrainer(), own["Image"]),
        (BookKeepingTrainer(), own["Transformer"]),
        (OpacusTrainer(), own["Words"]),
        (OpacusTrainer(), {"kind": "mlp", "hidden": (8,), "seed": 3}),
    ):
        mechanism = DpMechanism(
            kind="dp-sgd",
            clipping_norm=0.4,
            noise_multiplier=1.1,
            sampling_rate=0.5,
            steps=4,
            unit=Unit.RECORD,
            relation=Relation.ADD_OR_REMOVE,
        )
        jobs = [
            TrainingJob(
                holder_id=holder,
                model=model,
                arrays=initial_arrays(model, 64),
                data=data,
                mechanism=mechanism,
                learning_rate=0.5,
                expected_batch=30.0,
                noise=RehearsalNoise(seed),
            )
            for seed, holder in enumerate(("a", "b"))
        ]
        for update in trainer.train(jobs):
            name = f"{len(found)} {trainer.name} {update.holder_id}"
            content = b"".join(np.ascontiguousarray(array).tobytes() for array in update.arrays.values())
            found[name] = hashlib.sha256(content).hexdigest()
    check_noise(SecureNoise())
    return found


def main():
    side, directory, forbidden = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    through = {}
    if side == "inside":
        readable = [directory / "csv/data.csv", directory / "parquet/data.parquet"]
        raise_walls(readable=readable, limits=LIMITS)
        through = breaches(attack_walls(forbidden_file=forbidden, limits=LIMITS, readable=readable))
    found = digests(directory)
    threads = len(list(Path("/proc/self/task").iterdir()))
    # The walls stand after training as they did before: a plan's code has run in between.
    if side == "inside":
        through = {**through, **breaches(attack_walls(forbidden_file=forbidden, limits=LIMITS, readable=readable))}
    sys.stdout.write(json.dumps({"found": found, "through": through, "threads": threads}))


if __name__ == "__main__":
    main()
