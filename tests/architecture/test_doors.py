"""Whatever could lose the guarantee has one door. Each message says which, and what to do instead."""

import ast
import re

# Library -> the only modules that may import it, and what others do instead.
DOORS = {
    "polars": (
        {"ringfence_client.datasource", "ringfence_client.features", "ringfence_client.data_check"},
        "only datasource.py opens holder data: call load_dataset()",
    ),
    "pandera": (
        {"ringfence_client.data_check"},
        "its findings hold cells of the data; only data_check.py counts them: call check_data()",
    ),
    "dp_accounting": (
        set(),
        "it is the tests' oracle; only accounting.py turns mechanisms into epsilon: call accounting.epsilon_micro()",
    ),
    "cedarpy": ({"ringfence_policy.cedar"}, "only cedar.py speaks Cedar: call PolicyGate.decide()"),
    "joserfc": (
        {"ringfence_policy.identity", "ringfence_server.control.oidc"},
        "only identity.py signs and verifies: call sign() or open_signed(); oidc.py reads a provider's tokens",
    ),
    "orjson": (
        {"ringfence_policy.canonical"},
        "it writes floats and dataclasses, which canonical.py refuses: call canonical.encode()",
    ),
    "rfc8785": ({"ringfence_policy.canonical"}, "only canonical.py fixes bytes: call canonical.encode()"),
    "cryptography": (
        {"ringfence_policy.identity", "ringfence_policy.transport_keys", "ringfence_client.noise"},
        "keys are made in identity.py, those of the transport in transport_keys.py, noise in noise.py: call those",
    ),
    "opacus": ({"ringfence_client.opacus_trainer"}, "only opacus_trainer.py knows Opacus: call Trainer.train()"),
    "sqlite3": (
        {"ringfence_policy.database", "ringfence_policy.ledger", "ringfence_policy.ledger_reader"}
        | {"ringfence_policy.ledger_tables", "ringfence_policy.evidence_log"},
        "only database.py opens a database, so that each is durable and locked: call Database.open()",
    ),
    "pyseccomp": (
        {"ringfence_client.syscall_filter"},
        "only syscall_filter.py speaks to seccomp: call raise_walls()",
    ),
    "ctypes": (
        {"ringfence_client.kernel", "ringfence_client.landlock", "ringfence_client.attempts"}
        | {"ringfence_client.compiled", "ringfence_client.cohort_kernel", "ringfence_client.normals"},
        "the kernel is called through kernel.py, compiled code through compiled.py",
    ),
    "resource": (
        {"ringfence_client.walls", "ringfence_client.attempts"}
        | {"ringfence_client.break_out", "ringfence_client.confined"},
        "only walls.py sets limits: call raise_walls() or allow_cpu()",
    ),
    "jinja2": (
        {"ringfence_server.report", "ringfence_server.control.pages.fragments"},
        "only report.py and the pages' fragments.py fill templates, where everything is escaped",
    ),
    "matplotlib": ({"ringfence_server.charts"}, "only charts.py draws: add the chart there"),
    "tomllib": (
        {"ringfence_policy.strict_toml", "ringfence_policy.toml_lines"},
        "only strict_toml.py reads what a person wrote, strictly: call read_toml()",
    ),
}

# What Flower publishes is what its own documentation imports; anything else may move with any release.
FLOWER_PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
FLOWER_INTERNAL = {
    "flwr.proto.message_pb2": {"ringfence_client.flower_messages", "ringfence_server.flower_adapter"},
    "flwr.supercore.task_identity": {"ringfence_server.flower_adapter"},
    "flwr.supercore.run": {
        "ringfence_server.flower_adapter",
        "ringfence_server.embedded_grid",
        "ringfence_server.governed_strategy",
        "ringfence_server.round_grid",
        "ringfence_server.deployment_grid",
    },
    "flwr.proto.node_pb2": {
        "ringfence_server.embedded_grid",
        "ringfence_server.governed_strategy",
        "ringfence_server.round_grid",
        "ringfence_server.deployment_grid",
    },
    # The Control interface of a SuperLink: Flower types it and does not publish it. test_flower_control.py pins it.
    "flwr.cli.build": {"ringfence_server.flower_control"},
    "flwr.common.serde": {
        "ringfence_server.flower_adapter",
        "ringfence_server.flower_control",
        "ringfence_client.flower_messages",
    },
    "flwr.proto.control_pb2": {"ringfence_server.flower_control"},
    "flwr.supercore.control": {"ringfence_server.flower_control"},
    "flwr.supercore.fab": {"ringfence_server.flower_control"},
}

# The strings by which the server reaches the holders' side, as Flower does. Each is loaded by run_file.reach().
REFERENCES = {"ringfence_server.run_file", "ringfence_server.doctor"}

# Who may look at the process's environment, and why.
ENVIRONMENT = {
    "ringfence_client.cohort_trainer": "how many threads it may start",
    "ringfence_client.walls": "names a directory that exists to torch, which can make none behind the walls",
    "ringfence_server.worker": "turns Flower's telemetry off before Flower is imported",
    "ringfence_server.worker_process": "hands the worker its number of threads",
    "ringfence_server.holder_processes": "hands each process of holders its number of threads",
    "ringfence_server.holder_process": "turns Flower's telemetry off, as the worker does",
    "ringfence_server.control.runner": "hands a run's process its number of threads",
    "ringfence_server.superlink": "hands the SuperLink its environment, without any variable of Flower's own",
}

# Who may seed a global generator, inside torch.random.fork_rng, which leaves the process's own as it was.
SEEDED = {
    "ringfence_client.modules": "the public start of a module, the same for everybody",
    "ringfence_client.module_chance": "a module's own dropout, seeded from the holder's noise source",
    "ringfence_client.bookkeeping": "a module's trial on made-up rows, before data is opened",
}

# Who may use a socket, and what for. At a data holder only Flower's own SuperNode speaks to another machine.
NETWORK_DOORS = {
    "ringfence_server.front": "forwards what registered SuperNodes ask to the SuperLink on the loopback address",
    "ringfence_server.front_server": "listens for SuperNodes, the one exposed socket of a deployment",
    "ringfence_server.flower_control": "asks the SuperLink on the loopback address",
    "ringfence_server.demo_processes": "finds free ports of the loopback address",
    "ringfence_server.listening": "takes the port of the front and of the control plane",
    "ringfence_server.control.mirror": "wakes who follows a run, in the server's event loop",
    "ringfence_server.control.pages.seat": "calls use cases away from the server's event loop",
    "ringfence_server.control.pages.handing_out": "reads files away from the server's event loop",
    "ringfence_server.control.serve": "listens for browsers and scripts, on the control plane's one socket",
    "ringfence_server.control.limits": "bounds how long a body may take, with the clock of its event loop",
    "ringfence_server.control.api.app": "keeps the task that ends streams, in the server's event loop",
    "ringfence_server.control.feeds": "wakes those who watch a run, in the server's event loop",
    "ringfence_server.control.standing": "waits for events and for the end of a sign-in, in the server's event loop",
    "ringfence_server.control.signon": "reads a browser's cookie",
    "ringfence_server.control.oidc": "asks the identity provider that the operator named",
    "ringfence_client.relay": "hands Flower's message to the agent, on a Unix socket",
    "ringfence_client.agent": "answers the relay, on a Unix socket",
    "ringfence_client.agent_client": "asks the agent how it is, on a Unix socket",
    "ringfence_client.agent_door": "asks the kernel who is at the other end of that socket",
    "ringfence_client.supernode": "finds a free port of the loopback address for Flower's SuperNode",
}

NETWORK = {
    "socket",
    "ssl",
    "http",
    "urllib",
    "ftplib",
    "smtplib",
    "socketserver",
    "asyncio",
    "requests",
    "httpx",
    "uvicorn",
    "grpc",
}


def test_each_library_that_matters_is_imported_behind_its_one_door(sources):
    offences = [
        f"{source.at(line)} imports {name}: {instead}"
        for library, (doors, instead) in DOORS.items()
        for source in sources
        for name, line in source.imports
        if name.split(".")[0] == library and source.name not in doors
    ]
    assert not offences, "\n".join(offences)


def test_only_datasource_reads_a_file_of_holder_data(sources):
    allowed = {"ringfence_client.datasource", "ringfence_client.scenarios.build_heart"}
    pattern = re.compile(r"data\.(csv|parquet)|read_csv|read_parquet|scan_csv|scan_parquet")
    offences = [
        f"{source.at(node.lineno)} reaches for a data file: call datasource.load_dataset()"
        for source in sources
        if source.name not in allowed
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant | ast.Attribute)
        and not _is_docstring(node, source)
        and pattern.search(str(node.value if isinstance(node, ast.Constant) else node.attr))
    ]
    assert not offences, "\n".join(offences)


def test_flower_is_used_as_published_and_its_internals_stand_in_a_list(sources):
    offences = []
    for source in sources:
        for node in ast.walk(source.tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                if module.split(".")[0] != "flwr" or ".".join(module.split(".")[:2]) in FLOWER_PUBLIC:
                    continue
                if source.name not in FLOWER_INTERNAL.get(module, set()):
                    offences.append(
                        f"{source.at(node.lineno)} imports {module}, which Flower does not publish: put what you need "
                        "into flower_adapter.py and pin it in tests/conformance/test_flower_contract.py"
                    )
    assert not offences, "\n".join(offences)


def test_the_server_reaches_holders_only_by_reference_and_holders_never_name_the_server(sources):
    offences = []
    for source in sources:
        other = {"ringfence_server": "ringfence_client", "ringfence_client": "ringfence_server"}.get(source.package)
        named = re.compile(rf"\b{other}\b" if other else r"\bringfence_(client|server)\b")
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or _is_docstring(node, source):
                continue
            if named.search(node.value) and source.name not in REFERENCES:
                offences.append(
                    f"{source.at(node.lineno)} names {node.value!r}: server and clients meet only in ringfence_policy. "
                    "Move what both need there, or add a reference to run_file.py beside COHORT_APP"
                )
    assert not offences, "\n".join(offences)


def test_every_reference_to_the_holders_side_leads_somewhere():
    from ringfence_server import doctor, run_file  # noqa: PLC0415

    found = [getattr(module, name) for module in (run_file, doctor) for name in dir(module) if name.isupper()]
    references = [value for value in found if isinstance(value, str) and ":" in value]
    assert len(references) >= 6
    for reference in references:
        assert callable(run_file.reach(reference)), reference


def test_nothing_else_reads_the_environment(sources):
    offences = [
        f"{source.at(node.lineno)} reads the environment: take the value as an argument from whoever starts the process"
        for source in sources
        if source.name not in ENVIRONMENT
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {"environ", "getenv"} & _names(node))
    ]
    assert not offences, "\n".join(offences)


def test_system_calls_have_one_door(sources):
    """`syscall` takes any number: what a walled process may ask of the kernel is read in few places."""
    allowed = {"ringfence_client.kernel"}
    offences = [
        f"{source.at(node.lineno)} makes a system call by number: give it a name in kernel.py"
        for source in sources
        if source.name not in allowed
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Attribute) and node.attr == "syscall")
        or (isinstance(node, ast.Constant) and node.value == "syscall")
    ]
    assert not offences, "\n".join(offences)


def test_one_console_writes_what_strangers_named_and_it_knows_no_markup(sources):
    """A name with square brackets would style, link or break a table."""
    offences = [
        f"{source.at(node.lineno)} has a console of its own: call terminal()"
        for source in sources
        if source.name != "ringfence_policy.terminal"
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console")
        or (isinstance(node, ast.Attribute) and node.attr == "from_markup")
        or (isinstance(node, ast.ImportFrom) and node.module == "rich" and "print" in _names(node))
    ]
    assert not offences, "\n".join(offences)


def test_no_module_but_the_named_opens_a_network_connection(sources):
    offences = [
        f"{source.at(line)} imports {name}: nothing here talks to a network. Flower carries messages between machines"
        for source in sources
        for name, line in source.imports
        if name.split(".")[0] in NETWORK and source.name not in NETWORK_DOORS
    ]
    assert not offences, "\n".join(offences)


def test_numbers_that_must_not_be_guessed_come_from_no_ordinary_generator(sources):
    """`random` and numpy's and torch's global generators are predictable: noise made of them can be subtracted."""
    offences = [
        f"{source.at(line)} imports {name}: draw from noise.NoiseSource, or from secrets"
        for source in sources
        for name, line in source.imports
        if name.split(".")[0] == "random" or name.startswith("numpy.random")
    ]
    offences += [
        f"{source.at(node.lineno)} draws from a global generator: use noise.NoiseSource"
        for source in sources
        if source.name not in SEEDED
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("randn", "rand", "normal_", "manual_seed", "randperm")
        and isinstance(node.value, ast.Name)
        and node.value.id in ("torch", "np")
    ]
    assert not offences, "\n".join(offences)


def _names(node):
    return {alias.name for alias in node.names}


def _is_docstring(node, source):
    """Whether a string stands alone as a statement: prose, not a value."""
    return id(node) in source.prose
