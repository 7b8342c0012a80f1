"""A run's file where only the run's place and its attempt count."""

from ringfence_server.run_file import RunFile


def bare_run(directory, **changes):
    """A run called `one` whose directory this is."""
    plain = {
        "run_id": "one",
        "flower_run_id": 0,
        "scenario": "trees",
        "directory": str(directory),
        "out": str(directory),
        "plan_token": "token",
        "cards": {},
        "holder_directories": {},
        "seed": None,
        "attempt": 1,
        "started_at": "2026-11-26T05:00:00+00:00",
    }
    return RunFile(**{**plain, **changes})
