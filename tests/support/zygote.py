"""Worker processes for fault injection, forked from one process that has loaded everything once.

A run's worker spends most of its start on imports, and a matrix of crashes needs a hundred workers. This process
imports what a worker imports, opens nothing, and then forks a child for every request it reads from its standard input;
the child arms one fault, calls the product's own entry point and ends as that ends. The product has no hook for this.

A request is one JSON line; its answer is one JSON line {"exit": exit code, or minus the signal's number}.

    {"do": "start", "directory": ..., "seed": ...}     write the run file of a new run
    {"do": "work", "run": ..., "fault": ...}           carry a run out: `ringfence_server.worker.main`
    {"do": "resume", "directory": ..., "fault": ...}   take the newest unfinished run up, as `ringfence run --resume`

A fault is "module:name", "module:Class.name", the number of the call, and "before" or "after" it: there the child kills
itself with SIGKILL, which no handler and no buffer survives.
"""

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Fault:
    """Where a worker kills itself: at the `call`-th call of `target`, before or after it."""

    target: str
    call: int
    when: Literal["before", "after"] = "before"


class Zygote:
    """The other side of it: starts the process, sends requests, gives answers."""

    def __init__(self, *, import_path: Path | None = None) -> None:
        """Start it, perhaps with one more folder to import from."""
        known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        more = {} if import_path is None else {"PYTHONPATH": os.pathsep.join([str(import_path), *filter(None, known)])}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | more,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def start(self, directory: Path, *, seed: int | None = None) -> Path:
        """Write the run file of a new run, and give the run's directory."""
        before = set((directory / "runs").glob("2*"))
        assert self._ask({"do": "start", "directory": str(directory), "seed": seed}) == 0
        (run,) = set((directory / "runs").glob("2*")) - before
        return run

    def work(
        self, run: Path, *, fault: Fault | None = None, largest_file: int | None = None, whole: bool = False
    ) -> int:
        """Carry a run out.

        Args:
            run: The run's directory.
            fault: Where it kills itself.
            largest_file: How many bytes any file may grow to: the disk is full beyond.
            whole: Also compute comparison lines and draw the report, which take longer than all the rest.
        """
        request = {"do": "work", "run": str(run), "fault": _plain(fault), "largest_file": largest_file, "whole": whole}
        return self._ask(request)

    def resume(self, directory: Path, *, fault: Fault | None = None) -> int:
        """Take up the newest unfinished run."""
        return self._ask({"do": "resume", "directory": str(directory), "fault": _plain(fault)})

    def _ask(self, request: Mapping[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._process.stdout.readline())["exit"])


def _plain(fault: Fault | None) -> dict[str, Any] | None:
    return None if fault is None else asdict(fault)


def arm(fault: Fault) -> None:
    """Replace the named function by one that counts its calls and kills this process at the given one."""
    module, _, name = fault.target.partition(":")
    owner = resolve_name(f"{module}:{name.rpartition('.')[0]}") if "." in name else resolve_name(module)
    original: Callable[..., Any] = getattr(owner, name.rpartition(".")[2])
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls
        if mine == fault.call and fault.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if mine == fault.call and fault.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name.rpartition(".")[2], counted)


def serve() -> None:
    """Import everything, then fork for every request."""
    os.environ.update(OMP_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    for module in (
        "torch._dynamo",  # what the first optimiser loads
        "cedarpy",
        "ringfence_server.worker",
        "ringfence_server.serverapp",
        "ringfence_server.embedded_grid",
        "ringfence_server.report",
        "ringfence_client.clientapp",
        "ringfence_client.comparison",
        "ringfence_client.enrolment",
    ):
        resolve_name(module)
    resolve_name("torch").set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _carry_out(request)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps({"exit": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()


def _carry_out(request: Mapping[str, Any]) -> None:
    code = 99
    try:
        os.dup2(2, 1)  # the answers' pipe is the parent's alone
        code = _do(request)
    except BaseException:  # noqa: BLE001 -- whatever it was, this process ends here and must not go on serving
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _do(request: Mapping[str, Any]) -> int:
    run_file, scenario = resolve_name("ringfence_server.run_file"), resolve_name("ringfence_server.scenario")
    if request["do"] == "start":
        run_file.start_run(scenario.load_scenario(Path(request["directory"])), out=None, seed=request["seed"])
        return 0
    # Comparison lines and drawings touch no ledger and no log: they are left out to keep a hundred runs short.
    if not request.get("whole"):
        resolve_name("ringfence_client.comparison").compare = lambda *_, **__: {"note": "left out in this test"}
        resolve_name("ringfence_server.report").write_report = lambda _, path: path.write_text("left out in this test")
    if request["do"] == "resume":
        run = run_file.unfinished_run(Path(request["directory"])).next_attempt()
        run.save()
        directory = run.directory
    else:
        directory = request["run"]
    if request.get("largest_file"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails with EFBIG, as it would with ENOSPC
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], request["largest_file"]))
    if request.get("fault"):
        arm(Fault(**request["fault"]))
    sys.stdin = io.StringIO("begin\n")
    code: int = resolve_name("ringfence_server.worker").main([directory])
    return code


if __name__ == "__main__":
    serve()
