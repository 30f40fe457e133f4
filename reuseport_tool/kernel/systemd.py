"""systemd by systemctl(1): units that are started, asked and stopped."""

from __future__ import annotations

import subprocess

from reuseport_tool.errors import NotFound, ToolError

_ANSWER_S = 30.0


def active_instances(template: str) -> list[str]:
    """The units of a template (`web@`) that are active, in the order of their names."""
    words = ("list-units", "--plain", "--no-legend", "--full", "--state=active", f"{template}*.service")
    return sorted(line.split()[0].removesuffix(".service") for line in _systemctl(*words).splitlines() if line.split())


def start(unit: str, timeout_s: float) -> None:
    """Start a unit, until it is ready where its type tells. Raises ToolError when it fails or takes longer."""
    _systemctl("start", unit, timeout_s=timeout_s)


def stop(unit: str, timeout_s: float) -> None:
    """Stop a unit, until it has ended. Raises ToolError when it fails or takes longer."""
    _systemctl("stop", unit, timeout_s=timeout_s)


def main_pid(unit: str) -> int:
    """Raises ToolError where a unit has no process."""
    text = _systemctl("show", "--property=MainPID", "--value", unit).strip()
    if not text.isdigit() or text == "0":
        raise ToolError(f"{unit} has no main process", hint=f"look at: systemctl status {unit}")
    return int(text)


def is_enabled(unit: str) -> bool:
    """Whether it starts at boot by a link of its own."""
    done = _run("is-enabled", unit, timeout_s=_ANSWER_S)
    return done.stdout.strip() == "enabled"


def enable_instead(new: str, old: str) -> None:
    """Let one unit start at boot in place of another."""
    _systemctl("enable", "--quiet", new)
    _systemctl("disable", "--quiet", old)


def _systemctl(*words: str, timeout_s: float = _ANSWER_S) -> str:
    done = _run(*words, timeout_s=timeout_s)
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise ToolError(
            f"systemctl {' '.join(words)} failed: {reason[0] if reason else done.returncode}",
            hint="try the command by itself; 'journalctl -u UNIT' shows what a unit says",
        )
    return done.stdout


def _run(*words: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemctl", "--no-ask-password", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise NotFound("systemctl is not installed", hint="--unit needs systemd") from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"systemctl {' '.join(words)} took longer than {timeout_s:g} s") from error
