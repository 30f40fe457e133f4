"""`reload NAME` with a real /etc/reuseport-tool: root runs what root wrote, and nothing else."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import PORT, ask, server_command
from tests.kernel.trust.hostile import USER, picture
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]
# What a user makes of web.toml, where `ours` is root's own file and `theirs` the user's, in the current folder.
REFUSED = {
    "a file of the user": f"cp theirs web.toml; chown {USER} web.toml",
    "a file that a group can write": "cp ours web.toml; chmod 664 web.toml",
    "a link to the user's file": "ln -s $PWD/theirs web.toml",
    "a file of the user in a folder of everybody": f"chmod 1777 .; cp theirs web.toml; chown {USER} web.toml",
    "a link to root's file in a folder of everybody": "chmod 1777 .; ln -s $PWD/ours web.toml",
    "a second name of root's file in a folder of everybody": "chmod 1777 .; ln ours web.toml",
    "root's file in a folder of a group": "chmod 775 .; cp ours web.toml",
    "root's file in a folder of the user": f"chown {USER} .; cp ours web.toml",
}


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """What is mounted over /etc/reuseport-tool: root's deploy file `ours`, and `theirs` with another command."""
    folder = tmp_path / "deploys"
    folder.mkdir(mode=0o755)
    for name in ("ours", "theirs"):
        words = json.dumps(server_command(name))
        (folder / name).write_text(f'endpoint = "{PORT}"\noutput = "/dev/null"\ncommand = {words}\n')
    subprocess.run(["chown", str(USER), folder / "theirs"], check=True)
    return folder


def deployed(tool: Tool, etc: Path) -> subprocess.CompletedProcess[str]:
    """`reload web`, where /etc is a copy with `etc` in it."""
    layers = etc.parent / "layers"
    mounts = (
        f"mkdir {layers} && mount -t tmpfs none {layers} && cd {layers} && mkdir up work && "
        f"mount -t overlay -o lowerdir=/etc,upperdir=up,workdir=work none /etc && "
        f"mkdir /etc/reuseport-tool && mount --bind {etc} /etc/reuseport-tool && cd / && rmdir {layers} 2>/dev/null; "
    )
    script = mounts + "exec " + shlex.join(tool.command("reload", "web"))
    return subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)


def test_root_s_own_file(tool: Tool, server: Start, etc: Path, end_owners: None) -> None:
    """Also by root's own link."""
    server("one")
    (etc / "web.toml").symlink_to("ours")
    done = deployed(tool, etc)
    assert (done.returncode, ask()) == (0, "ours"), done.stderr


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_somebody_else_could_have_put_there(tool: Tool, server: Start, etc: Path, what: str) -> None:
    server("one")
    subprocess.run(["sh", "-ec", REFUSED[what]], cwd=etc, check=True)
    before = picture(etc)
    done = deployed(tool, etc)
    assert (done.returncode, "Traceback" in done.stderr) == (7, False), done.stderr
    assert "others could have written its commands" in json.loads(done.stderr)["message"]
    assert (ask(), picture(etc)) == ("one", before)


def test_a_pipe(tool: Tool, server: Start, etc: Path) -> None:
    """Nobody waits for its writer."""
    server("one")
    subprocess.run(["mkfifo", etc / "web.toml"], check=True)
    done = deployed(tool, etc)
    assert (done.returncode, ask()) == (2, "one"), done.stderr
