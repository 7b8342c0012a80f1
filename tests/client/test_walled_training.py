"""Every trainer behind the walls, with several threads: the same numbers as outside, and the walls still stand."""

import json
from pathlib import Path

import pytest
import walled_training
from behind_walls import python

from ringfence_client import kernel, landlock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not kernel.IS_LINUX or landlock.abi_version() == 0, reason="this kernel has no Landlock, or it is switched off"
    ),
]


def trained(side, holder):
    # Not with -P: the directory of the script is where this holder installed its own modules.
    script = str(Path(walled_training.__file__))
    ended = python(script, side, str(holder), str(holder / "key"), place=holder)
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-2000:])
    return json.loads(ended.stdout)


def test_every_trainer_gives_the_same_numbers_behind_the_walls_to_the_last_bit(tmp_path):
    (tmp_path / "key").write_text("secret")
    walled_training.write_data(tmp_path)
    outside, inside = trained("outside", tmp_path), trained("inside", tmp_path)
    assert inside["found"] == outside["found"]
    assert {name.split()[1] for name in inside["found"] if " " in name} == {"cohort", "book-keeping", "opacus"}
    assert inside["threads"] > walled_training.SEVERAL
    assert inside["through"] == {}, "the walls fell, before or after training"
