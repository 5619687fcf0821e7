"""``keepstep serve`` as a process, told by SIGHUP to read its configuration again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_server_process import ServerProcess, serve

KEY = "k" * 40


class Log:
    """The lines that the server writes to standard error, as they come."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._rest = b""

    async def until(self, event: str) -> list[dict[str, Any]]:
        """The lines up to the next one of this event."""
        assert self._server.process.stderr is not None
        lines: list[dict[str, Any]] = []
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                lines.append(json.loads(line))
                if lines[-1]["event"] == event:
                    return lines
            chunk = await self._server.process.stderr.receive_some()
            assert chunk, lines
            self._rest += chunk


@pytest.mark.slow
async def test_sighup_takes_over_what_may_change_and_says_what_it_was(
    data_dir: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the TOML file and the file of a secret; what is wrong changes nothing; the server goes on all the time."""
    file, secret = tmp_path / "keepstep.toml", tmp_path / "admin"
    file.write_text('registration = "open"\n')
    environment = {"KEEPSTEP_CONFIG": str(file), "ADMIN_API_KEY_FILE": str(secret)}
    secret.write_text("x" * 40)
    secret.chmod(0o600)
    async with serve(
        data_dir, database_url, environment={name: str(path) for name, path in environment.items()}
    ) as one:
        await one.ready()
        log = Log(one)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{one.rest_port}", timeout=60) as http:

            async def reload(change: Callable[[], object], event: str) -> list[dict[str, Any]]:
                change()
                one.process.send_signal(signal.SIGHUP)
                return await log.until(event)

            def change_settings() -> None:
                file.write_text('registration = "closed"\nserver_name = "other"\n')
                secret.write_text(f"{KEY}\n")

            lines = await reload(change_settings, "configuration_reloaded")
            told = {(line["event"], line["setting"], line["old"], line["new"]) for line in lines if line.get("setting")}
            assert told == {
                ("setting_changed", "registration", "open", "closed"),
                ("setting_changed", "admin_api_key", "***", "***"),
                ("setting_needs_restart", "server_name", "keepstep", "other"),
            }
            shown = (await http.get("/api/v1/server")).json()
            assert (shown["registration"], shown["name"]) == ("closed", "keepstep")
            assert (await http.get("/admin/users", headers={"authorization": f"Bearer {KEY}"})).status_code == 200
            metrics = (await http.get("/metrics")).text
            assert 'keepstep_settings_changed_total{setting="registration"} 1.0' in metrics
            assert 'keepstep_setting_restart_needed{setting="server_name"} 1.0' in metrics

            lines = await reload(lambda: file.write_text('registration = "shut"\n'), "configuration_refused")
            assert lines[-1]["problems"] == [
                f"registration in {file}=shut: must be open or invite or closed",
            ]
            assert (await http.get("/api/v1/server")).json()["registration"] == "closed"
            metrics = (await http.get("/metrics")).text
            assert 'keepstep_configuration_reloads_total{result="refused"} 1.0' in metrics
        code, err = await one.stop(signal.SIGTERM)
        assert code == 0
        assert KEY not in err
