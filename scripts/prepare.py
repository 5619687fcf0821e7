"""Make the virtual environment hold what a command needs, doing only what is not done yet.

    scripts/prepare.py serve                  run from source: dependencies, the extension, the package
    scripts/prepare.py serve --wheel FILE     run a built wheel: dependencies and that wheel, no Rust
    scripts/prepare.py dev                    `serve` and what tests and checks need

What was installed is recorded in the environment as digests of what it was made from, so that a second run takes
no time and a changed lock file, Rust source, extension or wheel is noticed. Every package comes from a lock file
and has its hash checked. Only the standard library is used: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCKS: Final = {
    "wheel": ["requirements.lock"],
    "serve": ["requirements.lock", "requirements-build.lock"],
    "dev": ["requirements-dev.lock"],
}
"""The development lock holds everything in the others, with the same versions."""
EXTENSION_SOURCES: Final = ("Cargo.toml", "Cargo.lock", "pyproject.toml", ".cargo", "rust/core", "rust/py")
FIRST_BUILD_HINT: Final = "about a minute on two cores; later builds take seconds"


def say(text: str) -> None:
    """Print one line of progress, at once."""
    print(f"keepstep: {text}", flush=True)


def user_name(uid: int) -> str:
    """The user's name, or its number where it has none (as in some containers)."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def digest(*paths: Path) -> str:
    """One digest of the names and contents of files, and of all files below folders."""
    state = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                state.update(f"{file.relative_to(path.parent)}\0{file.stat().st_size}\0".encode())
                state.update(file.read_bytes())
    return state.hexdigest()


def extension_files() -> list[Path]:
    """The built extension beside the sources; none before the first build."""
    return sorted((ROOT / "python" / "keepstep").glob("_keepstep*.so"))


class Environment:
    """A virtual environment and the record of what was put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.record_file = folder / "keepstep.json"
        self.record: dict[str, str] = {}

    def open(self, *, any_interpreter: bool) -> None:
        """Reuse the environment if it still runs and was made by this interpreter; make it anew if not.

        Args:
            any_interpreter: the interpreter that made it need not be this one.

        Raises:
            SystemExit: the folder holds something that is not a virtual environment.
        """
        base = f"{Path(sys.base_prefix)} {sys.version.split()[0]}"
        if self.folder.exists() and not (self.folder / "pyvenv.cfg").is_file():
            raise SystemExit(f"keepstep: {self.folder} is not a virtual environment; move it away or set VENV=folder")
        try:
            self.record = json.loads(self.record_file.read_text())
        except (FileNotFoundError, ValueError):
            self.record = {}
        command = [str(self.python), "-c", "import pip"]
        runs = self.python.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
        if runs and (any_interpreter or self.record.get("base", base) == base):
            self.record.setdefault("base", base)
            return
        self.require_ownership()
        say(f"making the virtual environment {self.folder.name} (Python {sys.version.split()[0]})")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.record = {"base": base}
        self.run(sys.executable, "-m", "venv", str(self.folder))
        self.save()

    def require_ownership(self) -> None:
        """Refuse in plain words to change a checkout or environment of another user.

        Raises:
            SystemExit: this user may not write there.
        """
        for folder in (ROOT, self.folder):
            if folder.exists() and not os.access(folder, os.W_OK):
                owner = user_name(folder.stat().st_uid)
                raise SystemExit(
                    f"keepstep: {user_name(os.geteuid())} may not write to {folder}, which belongs to {owner}: "
                    f"run this as {owner}, or in a checkout of your own"
                )

    def save(self) -> None:
        """Write the record; a step is recorded only after it succeeded."""
        self.record_file.write_text(json.dumps(self.record, indent=2) + "\n")

    def run(self, *command: str) -> None:
        """Run a step of the set-up; its own output says what went wrong.

        Raises:
            SystemExit: with the step's exit code, when it failed.
        """
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
        environment |= {"VIRTUAL_ENV": str(self.folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
        result = subprocess.run(command, cwd=ROOT, env=environment, check=False)  # noqa: S603
        if result.returncode != 0:
            say(f"this step failed: {' '.join(command)}")
            raise SystemExit(result.returncode)

    def pip(self, *arguments: str) -> None:
        """Run the environment's pip."""
        self.run(str(self.python), "-m", "pip", *arguments)

    def install_locked(self, profile: str) -> None:
        """Install the lock files of a profile, hashes checked, unless these or the larger set are installed."""
        if self.record.get("dev") == digest(ROOT / "requirements-dev.lock"):
            return
        files = [ROOT / name for name in LOCKS[profile]]
        wanted = digest(*files)
        if self.record.get(profile) == wanted:
            return
        self.require_ownership()
        say(f"installing dependencies from {', '.join(LOCKS[profile])} (hashes checked)")
        started = time.monotonic()
        locks = [argument for file in files for argument in ("-r", str(file))]
        self.pip("install", "--quiet", "--require-hashes", "--only-binary", ":all:", *locks)
        for other in LOCKS:
            self.record.pop(other, None)
        self.record[profile] = wanted
        self.save()
        say(f"dependencies installed in {time.monotonic() - started:.0f} s")

    def install_source(self) -> None:
        """Build the extension and install the package in place, unless sources and extension are as recorded."""
        sources = digest(*(ROOT / name for name in EXTENSION_SOURCES))
        built = extension_files()
        if built and self.record.get("package") == f"source {sources} {digest(*built)}":
            return
        self.require_ownership()
        first = not (ROOT / "target" / "release").is_dir()
        say(f"building the Rust extension ({FIRST_BUILD_HINT if first else 'sources or extension changed'})")
        started = time.monotonic()
        # Not `maturin develop`: it also resolves dependencies, which are here already with their hashes checked.
        self.pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".")
        self.record["package"] = f"source {sources} {digest(*extension_files())}"
        self.save()
        say(f"extension built in {time.monotonic() - started:.0f} s")

    def install_wheel(self, wheel: Path) -> None:
        """Install a built wheel in place of the package, unless that very wheel is installed."""
        wanted = f"wheel {digest(wheel)}"
        if self.record.get("package") == wanted:
            return
        self.require_ownership()
        say(f"installing {wheel.name}")
        self.pip("install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
        self.record["package"] = wanted
        self.save()


def main() -> None:
    """Bring the environment up to date for one command."""
    parser = argparse.ArgumentParser(description="make the virtual environment hold what a command needs")
    parser.add_argument("profile", choices=["serve", "dev"])
    parser.add_argument("--wheel", type=Path, help="run this built wheel instead of the sources (no Rust needed)")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the virtual environment")
    parser.add_argument(
        "--any-interpreter", action="store_true", help="reuse an environment that another interpreter made"
    )
    arguments = parser.parse_args()
    if arguments.wheel is not None and not arguments.wheel.is_file():
        raise SystemExit(f"keepstep: there is no wheel at {arguments.wheel} (make wheel builds one into dist/)")
    environment = Environment(arguments.venv.absolute())
    environment.open(any_interpreter=arguments.any_interpreter)
    if arguments.wheel is not None:
        environment.install_locked("wheel")
        environment.install_wheel(arguments.wheel)
    else:
        environment.install_locked(arguments.profile)
        environment.install_source()


if __name__ == "__main__":
    main()
