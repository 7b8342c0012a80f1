"""A real holder's records are opened in a process of their own, which gives what this one would and keeps code in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from agents import agents_of
from leaky_models import RECORD
from own_models import __file__ as own_models_file

from ringfence_client import trainer_link, walled_workroom
from ringfence_client.agent_client import ask_health
from ringfence_client.datasource import DATA_FILES
from ringfence_client.models import code_digest
from ringfence_client.trainer_link import TrainerLink, TrainerSettings
from ringfence_client.walled_workroom import SandboxFault, WalledWorkroom
from ringfence_client.walls import Wall
from ringfence_policy.errors import DataInvalid
from ringfence_policy.protocol import FAULT_CODE
from ringfence_policy.settlement import loudest_training
from ringfence_policy.vocabulary import Action
from ringfence_server.conversation import read_refusal
from ringfence_server.governor import Governor

SEED = 11
SUPPORT = Path(own_models_file).parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="walls are made of Linux")
pytestmark = LINUX


def settings_of(home, **changes):
    members = {
        "directory": home.directory,
        "files": [home.directory / name for name in DATA_FILES],
        "forbidden": home.key_list,
        "salt": home.profile.dataset.dataset_id,
        "log": home.state / "trainer.log",
        "memory_mib": 2048,
        "threads": 1,
    }
    return TrainerSettings(**(members | changes))


def walled(home):
    return WalledWorkroom(settings_of(home))


@pytest.fixture
def room(tiny_run):
    """One holder's workroom behind walls, and the plan of its run."""
    run = tiny_run(seed=SEED)
    room = walled(run.home("elm"))
    yield room, run.plan, run
    room.close()


@pytest.fixture
def one_walled_holder(tiny_run):
    """A factory of runs of which one holder's records are behind walls; the others' are in their agents' process."""
    opened = []

    def start(**changes):
        run = tiny_run(seed=SEED, **changes)
        context = agents_of(run, lambda home: walled(home) if home.profile.holder_id == "elm" else None)
        opened.append(context)
        return run, context.__enter__()

    yield start
    for context in opened:
        context.__exit__(None, None, None)


def test_a_rehearsal_behind_walls_gives_the_very_models_of_one_process(tiny_run, one_walled_holder):
    together = tiny_run("together", seed=SEED)
    together.train()
    apart, agents = one_walled_holder()
    apart.train()
    assert agents.nodes["elm"].workroom.pid is not None
    assert sorted(together.models) == sorted(apart.models) == [1, 2, 3]
    for number, model in together.models.items():
        for name, array in model.items():
            np.testing.assert_array_equal(array, apart.models[number][name])


def test_the_walls_stand_and_the_gate_is_told(room):
    workroom, _, _ = room
    assert workroom.breaches == {}
    assert workroom.sandboxed


def test_facts_are_counted_by_a_process_that_ends_and_counted_again_when_the_file_changes(room):
    workroom, plan, run = room
    data = run.home("elm").directory / "data.csv"
    before = workroom.facts(plan)
    assert before.records == len(data.read_text().splitlines()) - 1
    assert workroom.pid is None
    data.write_text("\n".join(data.read_text().splitlines()[:-1]) + "\n")
    after = workroom.facts(plan)
    assert after.records == before.records - 1
    assert after.fingerprint != before.fingerprint


def test_data_that_does_not_fit_is_refused_without_a_word_of_it(room):
    workroom, plan, run = room
    data = run.home("elm").directory / "data.csv"
    data.write_text(data.read_text().replace("wet", "a-secret-word"))
    with pytest.raises(DataInvalid) as caught:
        workroom.facts(plan)
    assert "secret" not in str(caught.value)
    assert "soil" in (run.home("elm").state / "trainer.log").read_text()


def test_another_plan_gets_another_process(room, tiny_run):
    workroom, plan, _ = room
    other = tiny_run("others", seed=SEED, plan={"training.rounds": 5}).plan
    workroom.examine(plan)
    first = workroom.pid
    workroom.examine(plan)
    assert workroom.pid == first
    workroom.examine(other)
    assert workroom.pid != first


def test_a_trainer_that_is_killed_while_it_trains_costs_the_use_and_nothing_more(one_walled_holder, monkeypatch):
    run, agents = one_walled_holder()
    run.propose()
    run.governor.offer(run.grid, 1)
    node = agents.nodes["elm"]
    real, spent = TrainerLink.ask, node.ledger.meters()

    def kill_first(link, frame, **options):
        if frame.words["ask"] == "use":
            os.kill(link.pid, signal.SIGKILL)
        return real(link, frame, **options)

    monkeypatch.setattr(TrainerLink, "ask", kill_first)
    failed = run.request("elm")
    assert failed.error.code == FAULT_CODE
    assert failed.error.reason == "the use failed after data was opened"
    assert node.ledger.meters() != spent
    monkeypatch.setattr(TrainerLink, "ask", real)
    assert not run.request("elm", attempt=2).has_error()
    assert ask_health(agents.sockets["elm"]) == "serving"


def test_a_trainer_that_cannot_start_uses_nothing_and_the_holder_says_so(one_walled_holder, monkeypatch):
    run, agents = one_walled_holder()
    run.propose()
    run.governor.offer(run.grid, 1)
    agents.nodes["elm"].workroom.close()
    monkeypatch.setattr(trainer_link, "_START_SECONDS", 5.0)
    monkeypatch.setattr(trainer_link.sys, "executable", "/bin/false")
    before = agents.nodes["elm"].ledger.meters()
    assert read_refusal(run.request("elm")).clauses
    assert agents.nodes["elm"].ledger.meters() == before


def test_a_process_whose_walls_have_a_hole_does_not_count_as_a_sandbox(room):
    workroom, _, run = room
    readable = run.home("elm").directory / "data.csv"
    workroom._settings = settings_of(run.home("elm"), forbidden=readable)
    assert set(workroom.breaches) == {Wall.FILES}
    assert not workroom.sandboxed


def test_a_trainer_that_never_answers_is_ended_in_its_time(room, monkeypatch):
    workroom, plan, _ = room
    workroom.examine(plan)
    os.kill(workroom.pid, signal.SIGSTOP)
    monkeypatch.setattr(walled_workroom, "_QUESTION_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(SandboxFault, match="too long"):
        workroom.check_training("run-1", plan, loudest_training(plan), seed=SEED)
    assert time.monotonic() - began < 20
    assert workroom.pid is None


# --- a plan's own code -----------------------------------------------------------------------------------------------

KEPT_IN = ["OpensASocket", "ReadsAnotherFile", "WritesAFile", "Forks", "StartsAProgram", "Kills", "TracesItsAgent"]


def hostile(name):
    digest = code_digest(f"hostile_models:{name}")
    return {
        "plan": {
            "model.kind": "module",
            "model.path": f"hostile_models:{name}",
            "model.code_digest": digest,
            "training.trainer": "book-keeping",
        },
        "policies": {holder: {"projects.code": ["built-in", digest]} for holder in ("alder", "birch", "elm")},
    }


@pytest.mark.parametrize("name", KEPT_IN)
def test_a_models_code_that_tries_to_get_out_is_kept_in_and_trains_like_any_other(one_walled_holder, name):
    run, agents = one_walled_holder(**hostile(name))
    run.propose()
    run.governor.offer(run.grid, 1)
    reply = run.request("elm")
    assert not reply.has_error(), reply.error
    assert "GotOut" not in (run.home("elm").state / "trainer.log").read_text()
    assert ask_health(agents.sockets["elm"]) == "serving"


@pytest.fixture
def asked(monkeypatch):
    """What each process is asked, in order, and whether torch is loaded there by then."""
    real, found = TrainerLink.ask, []

    def look(link, frame, **options):
        found.append((link.pid, frame.words["ask"], "libtorch" in Path(f"/proc/{link.pid}/maps").read_text()))
        return real(link, frame, **options)

    monkeypatch.setattr(TrainerLink, "ask", look)
    return found


@pytest.mark.parametrize("action", [Action.TRAIN, Action.EVALUATE])
@pytest.mark.parametrize("is_forgotten", [False, True])
def test_what_trains_a_plans_own_code_is_loaded_before_anything_is_charged(
    one_walled_holder, asked, monkeypatch, action, is_forgotten
):
    """It takes seconds, and a use that comes too late for its round is charged all the same."""
    run, agents = one_walled_holder(**hostile("Kills"))
    run.propose()
    run.governor.offer(run.grid, 1)
    assert not run.request("elm").has_error()
    node = agents.nodes["elm"]
    if is_forgotten:  # as by an agent that is started anew
        node.workroom.close()
        node.workroom = walled(run.home("elm"))
    else:
        os.kill(node.workroom.pid, signal.SIGKILL)
        while node.workroom.pid is not None:
            time.sleep(0.01)
    run.governor.offer(run.grid, 2)
    charged, charged_at_load, ask = node.ledger.meters(), [], TrainerLink.ask

    def note(link, frame, **options):
        if frame.words["ask"] == "load":
            charged_at_load.append(node.ledger.meters())
        return ask(link, frame, **options)

    monkeypatch.setattr(TrainerLink, "ask", note)
    assert not run.request("elm", round_number=2, action=action).has_error()
    uses = [(pid, is_loaded) for pid, ask, is_loaded in asked if ask == "use"]
    assert len({pid for pid, _ in uses}) == 2
    assert [is_loaded for _, is_loaded in uses] == [True, True]
    assert charged_at_load == [charged]


def test_where_a_plans_own_code_saw_records_nothing_is_asked_that_is_not_charged(one_walled_holder, asked):
    """It could answer by what it saw, in a refusal that costs nothing, again and again."""
    run, agents = one_walled_holder(**hostile("Kills"))
    run.propose()
    run.governor.offer(run.grid, 1)
    assert not run.request("elm").has_error()
    used = agents.nodes["elm"].workroom.pid
    again = f"{run.file.run_id}-again"
    run.governor = Governor(
        coordinator=run.coordinator, cards=run.file.nodes(), plan=run.plan, plan_token=run.file.plan_token,
        run_id=again, seed=SEED, poll_seconds=0.02,
    )  # fmt: skip
    run.propose()
    run.governor.offer(run.grid, 1)
    assert not run.request("elm", run_id=again).has_error()
    asks = [ask for pid, ask, _ in asked if pid == used]
    assert asks[asks.index("use") :] == ["use", "use"]


@pytest.mark.parametrize("name", KEPT_IN)
def test_the_same_code_gets_out_where_no_walls_stand(name):
    code = f"import hostile_models; print(hostile_models.{name}(feature_count=3).attack())"
    path = {"PYTHONPATH": str(SUPPORT), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, timeout=60, check=False
    )
    Path("/dev/shm/left-here").unlink(missing_ok=True)  # noqa: S108 -- what one of them leaves
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() not in {"", "None"}


@pytest.mark.parametrize("name", ["EatsMemory", "NeverEnds"])
def test_code_that_takes_memory_or_time_without_end_is_refused_before_anything_is_reserved(
    one_walled_holder, monkeypatch, name
):
    monkeypatch.setattr(walled_workroom, "_QUESTION_SECONDS", 6.0)
    run, agents = one_walled_holder(**hostile(name))
    run.propose()
    run.governor.offer(run.grid, 1)
    node = agents.nodes["elm"]
    before = node.ledger.meters()
    assert read_refusal(run.request("elm")).clauses
    assert node.ledger.meters() == before
    assert node.ledger.holds(run.file.run_id) == []
    assert ask_health(agents.sockets["elm"]) == "serving"


# --- what approved code could say about records without being charged -------------------------------------------------


def leaky(run_of, name):
    digest = code_digest(f"leaky_models:{name}")
    changes = hostile("Forks")
    changes["plan"] |= {"model.path": f"leaky_models:{name}", "model.code_digest": digest}
    changes["policies"] = {one: {"projects.code": ["built-in", digest]} for one in changes["policies"]}
    run, agents = run_of(**changes)
    with (run.home("elm").directory / "data.csv").open("a") as data:
        data.write(f"{RECORD}\n")
    run.propose()
    run.governor.offer(run.grid, 1)
    return run, agents.nodes["elm"]


def test_code_that_is_only_looked_at_can_read_no_record(one_walled_holder):
    run, _ = leaky(one_walled_holder, "ReadsWhenBuilt")
    reply = run.request("elm")
    # In the trainer it reads them: the use is charged by then, and a failure says no more than that it failed.
    assert reply.error.code == FAULT_CODE
    assert run.log_of("elm", "charged")


def test_code_that_has_seen_records_answers_nothing_that_is_not_charged(one_walled_holder):
    run, node = leaky(one_walled_holder, "Remembers")
    assert not run.request("elm").has_error()
    node.workroom.check_training("another-run", run.plan, loudest_training(run.plan), seed=SEED)
    node.workroom._examined.clear()
    assert node.workroom.examine(run.plan).shapes


def test_an_answer_that_the_agent_cannot_read_is_a_failed_use_and_is_charged(one_walled_holder):
    run, node = leaky(one_walled_holder, "BreaksItsAgent")
    before = node.ledger.meters()
    reply = run.request("elm")
    assert reply.error.code == FAULT_CODE
    assert reply.error.reason == "the use failed after data was opened"
    run.propose()  # which would give back what was only reserved
    assert node.ledger.meters() != before
