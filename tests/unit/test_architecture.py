"""The structure that docs/explanation describes, as checks: arrows, importers, sizes, and nothing left unfinished."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "python" / "keepstep"
FILE_LINES_MAX: Final = 600
FUNCTION_LINES_MAX: Final = 70

LAYERS: Final = (
    (
        "leaves",
        (
            "_keepstep",
            "allocator",
            "certificates",
            "config",
            "errors",
            "garbage",
            "model",
            "proxies",
            "settings",
            "validation",
        ),
    ),
    ("protocol", ("protocol",)),
    (
        "services",
        (
            *(
                "access",
                "accesstokens",
                "account_beginning",
                "account_file",
                "account_histories",
                "account_import",
                "admin",
                "administration",
                "admission",
                "arrivals",
                "cleanup",
                "credit",
                "diskspace",
                "eventlog",
                "fairness",
                "gathering",
                "heads",
                "healing",
                "hits",
                "identity",
            ),
            *("interfaces", "jobs", "journal", "links", "lookups", "measuring", "pacing", "pagereader"),
            *("pages", "polling", "presence", "publish", "publishqueue"),
            *("ratelimit", "relay", "retention", "reloading", "replaying", "restores", "resuming", "revocation"),
            *(
                "runtime",
                "safety",
                "session",
                "sessionrecords",
                "sessionservices",
                "subscriber",
                "subscription",
                "suspects",
                "tail",
                "tallies",
            ),
            *("telemetry", "tokens", "tokenstore", "turns", "verification"),
        ),
    ),
    (
        "edges",
        (
            *(
                "account_intake",
                "announcements",
                "archive",
                "backup",
                "client",
                "gateway",
                "keys",
                "listening",
                "memory",
                "migrations",
                "postgres",
                "rest",
            ),
            *("entrance", "proxyheader", "journal_spool", "resources", "restoring", "tls", "tokenkeys"),
            *(
                "websocket",
                "websocket_connection",
                "websocket_hub",
                "websocket_lobby",
                "websocket_request",
                "websocket_upgrade",
            ),
        ),
    ),
    ("server", ("composition", "config_check", "edge", "limits", "server", "upkeep")),
    (
        "cli",
        (
            "admin_cli",
            "archive_cli",
            "backup_cli",
            "cli",
            "cli_database",
            "config_cli",
            "database_cli",
            "migrate_cli",
            "retention_cli",
            "verify_cli",
            "__main__",
        ),
    ),
)
"""Lowest first: a module imports from its own layer and from those below, never from above."""

SINGLE_IMPORTERS: Final = {
    "blake3": {"backup", "client.crypto"},
    "cryptography": {"accesstokens", "certificates"},
    "hypercorn": {"rest.serving"},
    "obstore": {"archive.store"},
    "jwt": {"accesstokens"},
    "nacl": {"client.crypto"},
    "prometheus_client": {"tallies", "telemetry"},
    "psycopg": {"postgres"},
    "psutil": {"postgres"},
    "pydantic_settings": {"config", "settings"},
    "pyrage": {"backup"},
    "quart": {"rest"},
    "quart_trio": {"rest"},
    "sqlite3": {"client.store", "journal_spool"},
    "trio_websocket": {"client"},
    "wsproto": {"websocket_upgrade"},
}
"""Third-party libraries that do I/O or cryptography, and the one place on each side that knows them."""

IMPURE: Final = {
    "asyncio", "datetime", "io", "os", "pathlib", "random", "secrets", "select", "socket", "sqlite3", "ssl",
    "subprocess", "threading", "time", "trio", "uuid",
}  # fmt: skip
"""What protocol/ may not import: it has no I/O, no clock and no randomness."""


def python_files(*folders: str) -> list[Path]:
    """Every Python source below folders of the repository."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module_name(file: Path) -> str:
    """Name of a module of the package without the package's own name: ``postgres.log``."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[str]:
    """Absolute names that a file imports, in functions too; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def runtime_imports(file: Path) -> Iterator[str]:
    """As ``imports``, without those that only type checkers see."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES: Final = {module_name(file): file for file in python_files("python/keepstep")}


def layer_of(module: str) -> int:
    """Index of the layer that a module belongs to."""
    top = module.partition(".")[0]
    found = [index for index, (_, names) in enumerate(LAYERS) if top in names]
    assert len(found) == 1, (
        f"{module} is in no layer: give it its place in LAYERS and in the architecture's description"
    )
    return found[0]


def own_imports(file: Path) -> set[str]:
    """Modules of the package that a file imports, without the package's own name."""
    names = (name.removeprefix("keepstep.") for name in imports(file) if name.startswith("keepstep."))
    known = {*MODULES, "_keepstep"}
    return {name if name in known else name.rpartition(".")[0] for name in names} & known - {""}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"__init__"}))
def test_arrows_point_down(module: str) -> None:
    """A module imports nothing from a layer above its own."""
    upward = {name for name in own_imports(MODULES[module]) if layer_of(name) > layer_of(module)}
    assert not upward, f"{module} ({LAYERS[layer_of(module)][0]}) imports upward"


def test_modules_import_each_other_in_one_direction() -> None:
    """There is no cycle of imports, type-checking imports aside."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for module, file in MODULES.items():
        names = {name.removeprefix("keepstep.") for name in runtime_imports(file) if name.startswith("keepstep.")}
        sorter.add(module, *({name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys()))
    sorter.prepare()


def test_the_client_needs_no_part_of_the_server() -> None:
    """The client library installs without the server: it imports protocol, leaves and itself."""
    allowed = ("client", "protocol", "errors", "model", "validation")
    for module, file in MODULES.items():
        if module.partition(".")[0] == "client":
            foreign = {name for name in own_imports(file) if name.partition(".")[0] not in allowed}
            assert not foreign, f"{module} imports parts of the server"


def test_only_the_command_line_reaches_into_the_client() -> None:
    """No part of the server imports the client library."""
    for module, file in MODULES.items():
        if module.partition(".")[0] not in {"client", "admin_cli", "cli", "__main__"}:
            assert not {name for name in own_imports(file) if name.partition(".")[0] == "client"}, module


def test_protocol_is_free_of_io_clock_and_randomness() -> None:
    """Time and random bytes are arguments of protocol/, and so is cryptography."""
    for module, file in MODULES.items():
        if module.partition(".")[0] == "protocol":
            roots = {name.partition(".")[0] for name in imports(file)}
            assert not roots & IMPURE, f"{module} is not sans-I/O"
            assert "keepstep._keepstep" not in set(imports(file)), f"{module} takes its cryptography as an argument"


@pytest.mark.parametrize("library", sorted(SINGLE_IMPORTERS))
def test_a_library_has_one_importer(library: str) -> None:
    """Each third-party I/O library is known in exactly one place."""
    importers = {
        module
        for module, file in MODULES.items()
        if any(name == library or name.startswith(f"{library}.") for name in imports(file))
    }
    places = SINGLE_IMPORTERS[library]
    strangers = {
        name for name in importers if not any(name == place or name.startswith(f"{place}.") for place in places)
    }
    assert not strangers, f"{library} belongs to {sorted(places)}"
    assert importers, f"nothing imports {library} any more: take it out of the table and the dependencies"


def source_files() -> list[Path]:
    """Every source that people read and write: both languages."""
    rust = sorted((ROOT / "rust").rglob("*.rs"))
    return python_files("python", "tests", "scripts", "bench", "examples") + rust


def documents() -> list[Path]:
    """Everything written for people."""
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "bench").rglob("*.md")),
    ]


def test_files_stay_readable() -> None:
    """No source file is longer than 600 lines."""
    sizes = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in source_files()}
    assert {name: lines for name, lines in sizes.items() if lines > FILE_LINES_MAX} == {}


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its ``def`` to its end, its docstring not counted."""
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    documentation = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring is not None else 0
    return (node.end_lineno or 0) - node.lineno + 1 - documentation


def test_functions_fit_on_a_screen() -> None:
    """No function has more than 70 lines beside its docstring."""
    long = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": function_lines(node)
        for file in python_files("python", "tests", "scripts", "bench", "examples")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function_lines(node) > FUNCTION_LINES_MAX
    }
    assert long == {}


UNFINISHED: Final = (
    "TO" + "DO",
    "FIX" + "ME",
    "XX" + "X",
    "NotImplemented" + "Error",
    "un" + "implemented!",
    "to" + "do!(",
)
"""Marks of work that was not done; split here so that this file does not hold them."""
HIDDEN_TESTS: Final = ("mark." + "skip", "mark." + "xfail", "pytest." + "skip(")
"""What lets a test pass without showing its fact."""
SLEEPS: Final = ("time." + "sleep(", "trio." + "sleep(")
"""What makes a test depend on the machine's speed; a virtual clock moves by itself."""
HOME_PATH: Final = re.compile("(?<![a-z.])/(" + "root|home/[a-z]+|Users/[A-Za-z]+)/")


def lines_with(files: list[Path], *marks: str) -> list[str]:
    """Where any of the marks occurs."""
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if any(mark in line for mark in marks)
    ]


def test_nothing_is_left_unfinished() -> None:
    """No source carries a mark of work that was put off."""
    assert lines_with(source_files(), *UNFINISHED) == []


def test_no_test_is_hidden() -> None:
    """No test is skipped or expected to fail."""
    assert lines_with(python_files("tests"), *HIDDEN_TESTS) == []


def test_no_unit_test_waits_for_the_wall_clock() -> None:
    """Tests let time pass on a virtual clock; only those of real processes have nothing else to wait with."""
    sleeping = {
        str(file.relative_to(ROOT))
        for file in python_files("tests/contract", "tests/property", "tests/unit")
        if lines_with([file], *SLEEPS) and not {"psutil", "subprocess"} & set(imports(file))
        if "autojump_clock" not in file.read_text(encoding="utf-8")
    }
    assert sleeping == set()


def test_no_path_of_a_developers_machine() -> None:
    """Sources and documents name no folder of somebody's home."""
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in [*source_files(), *documents()]
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if HOME_PATH.search(line)
    ]
    assert found == []


def test_the_description_names_every_module() -> None:
    """docs/explanation/architecture.md lists each top-level module in the layer that it has here."""
    description = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rows = [row for row in description.splitlines() if row.startswith("| ") and "`" in row]
    assert len(rows) == len(LAYERS)
    for (layer, names), row in zip(reversed(LAYERS), rows, strict=True):
        listed = set(re.findall(r"`([a-z_]+)`", row.split("|")[2]))
        assert listed == {*names}, layer


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link in a document names a file that is there."""
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents()
        for target in re.findall(r"\]\(([^)#: ]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
        if not (document.parent / target).exists()
    ]
    assert broken == []


def test_documents_that_the_code_cites_exist() -> None:
    """A document named in a source is one of ours."""
    names = {document.name for document in documents()}
    cited = {
        name for file in source_files() for name in re.findall(r"\b([a-z_-]+\.md)\b", file.read_text(encoding="utf-8"))
    }
    assert cited - names == set()


def unlisted(index: Path, files: list[Path]) -> list[str]:
    """The files that an index has no link to."""
    text = index.read_text(encoding="utf-8")
    names = [str(file.relative_to(index.parent)) for file in files if file != index]
    return [name for name in names if f"({name})" not in text]


def test_every_document_is_in_an_index() -> None:
    """docs/README.md lists every document, docs/adr/README.md every decision."""
    docs = ROOT / "docs"
    decisions = list((docs / "adr").glob("*.md"))
    assert unlisted(docs / "adr" / "README.md", decisions) == []
    assert unlisted(docs / "README.md", [file for file in docs.rglob("*.md") if file not in decisions]) == []
