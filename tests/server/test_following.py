"""Following a run from its beginning: only how its last attempt ended is how it ended."""

import json

import pytest
from bare_run import bare_run

from ringfence_server.following import follow_run

FAILED = {"event": "run-failed", "exit_code": 1, "error": {"code": "run-failed", "summary": "its process was killed"}}
GOES_ON = {"event": "evaluating", "at": 0}


class Over:
    """What carried a run out, and is gone."""

    def is_over(self):
        return True

    def trouble(self):
        return None


@pytest.mark.parametrize(("events", "code"), [([FAILED, GOES_ON], 0), ([GOES_ON, FAILED], 1)])
def test_a_failure_counts_unless_a_later_attempt_went_on(tmp_path, capsys, events, code):
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    (tmp_path / "summary.json").write_text(json.dumps({"status": "completed"}))
    assert follow_run(bare_run(tmp_path, attempt=2), Over(), as_json=True) == code
    capsys.readouterr()
