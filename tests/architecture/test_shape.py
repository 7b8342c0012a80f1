"""What keeps the code readable by a data officer's auditor, in numbers and in habits."""

import ast

LONGEST_MODULE = 500
LONGEST_FUNCTION = 60

# Runs exactly the bytes of a user's own model file whose digest the holder approved, and nothing else.
RUNS_CODE = {"ringfence_client.modules"}


def test_every_module_says_in_a_first_sentence_what_lives_in_it(sources):
    offences = []
    for source in sources:
        words = (ast.get_docstring(source.tree) or "").split("\n\n")[0].strip()
        if "." not in words and not words.endswith(":"):
            offences.append(f"{source.at(1)} has no first sentence: begin with a docstring that says what lives here")
    assert not offences, "\n".join(offences)


def test_no_module_is_longer_than_a_reader_can_hold(sources):
    offences = [
        f"{source.at(lines)} has {lines} lines: find the second subject in it and give it a module of its own"
        for source in sources
        if (lines := source.text.count("\n")) > LONGEST_MODULE
    ]
    assert not offences, "\n".join(offences)


def test_no_function_is_longer_than_a_screen(sources):
    offences = [
        f"{source.at(node.lineno)} {node.name}() has {length} lines: give its steps names of their own"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and (length := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not offences, "\n".join(offences)


def test_nothing_is_left_open_or_printed_past_the_terminal_layer(sources):
    offences = []
    for source in sources:
        for node in ast.walk(source.tree):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if called in ("print", "input"):
                offences.append(f"{source.at(node.lineno)} calls {called}(): commands answer with typer or rich")
            if called in ("eval", "exec") and source.name not in RUNS_CODE:
                offences.append(f"{source.at(node.lineno)} calls {called}(): text is never run here")
            if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
                offences.append(f"{source.at(node.lineno)} leaves a stub: build it, or leave the name out")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                offences.append(f"{source.at(node.lineno)} catches everything: name what can be handled here")
    assert not offences, "\n".join(offences)


def test_pickle_reads_nothing(sources):
    """A pickle runs code when it is read; models travel as safetensors and papers as JSON."""
    offences = [
        f"{source.at(line)} imports {name}: use safetensors for arrays and canonical JSON for the rest"
        for source in sources
        for name, line in source.imports
        if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
    ]
    offences += [
        f"{source.at(node.lineno)} calls torch.{node.func.attr}(): it unpickles; use safetensors"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("load", "save")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("torch", "np", "numpy")
    ]
    assert not offences, "\n".join(offences)


def test_the_packages_export_no_names_of_their_own(sources):
    """Importing a package must load nothing: `--help` stays quick and an auditor sees what a module pulls in.

    Names that others may build on stand in docs/architecture.md with the module they live in.
    """
    tops = [source for source in sources if source.name == source.package]
    assert len(tops) == 3
    offences = [
        f"{source.at(node.lineno)}: a package holds only its docstring; import the name from its module instead, and "
        "list it in docs/architecture.md"
        for source in tops
        for node in source.tree.body[1:]
    ]
    assert not offences, "\n".join(offences)
