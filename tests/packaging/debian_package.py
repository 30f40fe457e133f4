"""`make test-packages`: the .deb on fresh roots of Debian 12 and 13, installed, used and purged.

1. debootstrap makes a root; apt installs the package with Debian's own click, rich, pyroute2, scapy and BCC.
2. It boots as a container; autopkgtest runs the package's own test there: `check hot-reload` with what was installed.
3. Debian's own nginx, a systemd service, reloads to fewer workers and back under load: connections are reset.
4. The same with the packaged follower, and `reload --run 'systemctl restart nginx'`: none is lost.
5. The same package once more, as an upgrade: the program stays, only the follower starts anew. None is lost.
6. purge detaches the group, while nginx serves, and leaves no file.
7. Installed again, with groups in a bpffs of the tool's own and in another network namespace: purge leaves nothing.

It downloads for minutes, so it is no part of `make test`. The roots are kept in the cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.check import lab
from reuseport_tool.group.status import Observer
from reuseport_tool.kernel import netns, resets
from reuseport_tool.waiting import wait_until
from tests.servers import restart, servers
from tests.servers.container import Container, container
from tests.unit.test_cli import VERBS

CHECKOUT = Path(__file__).parents[2]
# Not the cache of programs, which a test run has for itself.
CACHE = Path.home() / ".cache" / "reuseport-tool" / "roots"
BASE = "systemd,systemd-sysv,dbus,iproute2,nginx,python3"
LIMIT_S = 540
# `check hot-reload` needs 3 s of CPU time and waits 7 s for timers. With 8 % of a CPU it takes 32 s, so at a load of 20
# and with nice 10, which leaves 2 %, two minutes.
CHECK_S = 240
PACKAGE, SOURCE = "/root/package.deb", "/root/source/"
# What autopkgtest needs, and the test itself: the booted container has no network.
FOR_AUTOPKGTEST = "autopkgtest dpkg-dev python3-prometheus-client"
OWN_BPFFS = "/run/reuseport-tool/bpffs"
NETNS = "other"
MANY, FEW = 4, 1
ROUNDS = 3
CLIENTS = 128
QUEUED = 32
# The tests restart it more often than five times in ten seconds.
OFTEN_ON_ONE_CPU = f"[Unit]\nStartLimitIntervalSec=0\n[Service]\nCPUAffinity={restart.cpu()}\n"
FOLLOWER = f"reuseport-tool-follow@{servers.PORT}"
SITE = f"""
server {{ listen {servers.ADDRESS}:{servers.PORT} reuseport; root /srv/www; gzip on; gzip_http_version 1.0;
          gzip_types text/html; access_log off; }}
"""


def base_root(suite: str) -> Path:
    """A root by debootstrap, made once."""
    root = CACHE / suite
    made = CACHE / f"{suite}.made"
    if not made.exists():
        subprocess.run(["rm", "-rf", root], check=True)
        root.mkdir(parents=True)
        words = ["debootstrap", "--variant=minbase", f"--include={BASE}", suite, root]
        subprocess.run(words, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
        made.touch()
    return root


def chrooted(root: Path, script: str) -> str:
    """Run a script in a root that is not booted, with this machine's network."""
    words = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--resolv-conf=copy-host"]
    done = subprocess.run(
        [*words, f"--directory={root}", "sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={"PATH": os.environ["PATH"], "DEBIAN_FRONTEND": "noninteractive"},
    )
    assert done.returncode == 0, f"{script}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def debian(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container with the package installed, booted in a network namespace of its own."""
    suite = request.param
    (package,) = (CHECKOUT / "build" / "deb").glob("*.deb")
    with container(tmp_path_factory.mktemp(suite), f"reuseport-tool-{suite}", base_root(suite)) as made:
        before = files(made.root)
        (made.root / PACKAGE.lstrip("/")).write_bytes(package.read_bytes())
        shutil.copytree(CHECKOUT / "packaging" / "debian", made.root / SOURCE.lstrip("/") / "debian")
        install = f"apt-get -qq update && apt-get -qq install -y --no-install-recommends {PACKAGE} {FOR_AUTOPKGTEST}"
        chrooted(made.root, f"export DEBIAN_FRONTEND=noninteractive; {install}")
        assert files(made.root) - before
        # Without a network, apt in the booted container would try each source again and again.
        chrooted(made.root, "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*")
        configure(made)
        with netns.throw_away():
            made.start()
            made.run("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
            yield made
            made.stop()


def configure(made: Container) -> None:
    made.write("/etc/nginx/conf.d/test.conf", SITE)
    (made.root / "etc/nginx/sites-enabled/default").unlink(missing_ok=True)
    made.write("/etc/systemd/system/nginx.service.d/test.conf", OFTEN_ON_ONE_CPU)
    made.write("/srv/www/index.html", "".join(f"<p>{number**5}</p>" for number in range(20_000)))
    workers(made, MANY)


def workers(made: Container, number: int) -> None:
    config = made.root / "etc/nginx/nginx.conf"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("worker_processes")]
    config.write_text("\n".join([f"worker_processes {number};", *lines]) + "\n")


def files(root: Path) -> set[str]:
    """What has the tool's name, as the package's users would look for it; but not the source, which is the test's."""
    source = ["-path", root / SOURCE.strip("/"), "-prune", "-o"]
    words = [
        "find",
        root,
        "-xdev",
        *source,
        "(",
        "-name",
        "*reuseport*tool*",
        "-o",
        "-path",
        "*reuseport-tool/*",
        ")",
        "-print",
    ]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    return set(found.stdout.splitlines())


def test_the_packages_own_test_proves_the_kernel(debian: Container) -> None:
    """A container is no machine of its own for autopkgtest, but this one may load programs into the kernel."""
    options = ("--no-built-binaries", "--ignore-restrictions=isolation-machine")
    done = debian.run("autopkgtest", *options, PACKAGE, SOURCE, "--", "null", limit_s=CHECK_S)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert re.search(r"^hot-reload +PASS", done.stdout, re.MULTILINE)


def test_every_verb_has_its_page(debian: Container) -> None:
    pages = {path.name.removesuffix(".1.gz") for path in (debian.root / "usr/share/man/man1").glob("reuseport-tool*")}
    assert pages >= {"-".join(("reuseport-tool", *verb)) for verb in VERBS}


def test_completion_offers_verbs_and_policies(debian: Container) -> None:
    script = (
        ". /usr/share/bash-completion/completions/reuseport-tool; COMP_WORDS=(reuseport-tool attach 8080 --policy '');"
        "COMP_CWORD=4; _reuseport_tool_completion reuseport-tool; echo ${COMPREPLY[*]}"
    )
    assert debian.ok("bash", "-c", script).split() == ["hash", "round-robin", "cpu", "source-ip"]


@pytest.fixture
def nginx(debian: Container) -> Iterator[Container]:
    workers(debian, MANY)
    debian.ok("systemctl", "restart", "nginx")
    servers.await_listeners(MANY)
    servers.await_answer()
    yield debian
    debian.ok("systemctl", "stop", "nginx")


def shrink_and_grow(made: Container, once_more: Callable[[], None]) -> Ledger:
    with restart.on_one_cpu():
        clients = Load(servers.ADDRESS, servers.PORT, CLIENTS)
    with clients as load:
        for _ in range(ROUNDS):
            restart.await_load(QUEUED)
            for number in (FEW, MANY):
                workers(made, number)
                made.ok("systemctl", "reload", "nginx")
                assert wait_until(lambda expected=number: len(servers.listeners()) == expected, 30)  # type: ignore[misc]
            once_more()
        return load.stop()


def test_a_reload_of_nginx_alone_loses_connections(nginx: Container) -> None:
    ledger = shrink_and_grow(nginx, lambda: None)
    print(ledger)
    assert ledger.answered
    assert ledger.reset


def test_the_packaged_follower_and_a_restart_lose_none(nginx: Container) -> None:
    nginx.ok("systemctl", "start", FOLLOWER)
    assert wait_until(lambda: "following" in nginx.ok("systemctl", "show", "--property", "StatusText", FOLLOWER), 30)

    def restarted() -> None:
        restart.await_load(QUEUED)
        command = ("reload", servers.PORT, "--listeners", MANY, "--run", "systemctl restart nginx", "--wait", "10")
        print(nginx.ok("reuseport-tool", *command))

    ledger = shrink_and_grow(nginx, restarted)
    print(ledger)
    assert ledger.lost == 0
    assert ledger.answered > ROUNDS * QUEUED
    print(nginx.ok("reuseport-tool", "status", servers.PORT))
    (group,) = json.loads(nginx.ok("reuseport-tool", "--json", "status", servers.PORT))["groups"]
    counted = group["followed"]["resets"]
    # The follower has few capabilities, and still knows what the tool knows as root.
    refused = 0 if resets.sees_packets_without_socket() else None
    assert (counted["never_accepted"], counted["handshakes"], counted["refused"]) == (0, 0, refused)


def program_of(made: Container) -> tuple[int, int]:
    """The id of the program that the group runs, and the working generation."""
    (group,) = json.loads(made.ok("reuseport-tool", "--json", "status", servers.PORT))["groups"]
    return group["program"]["id"], group["working_generation"]


def test_an_upgrade_leaves_the_group_as_it_is(nginx: Container) -> None:
    nginx.ok("reuseport-tool", "attach", servers.PORT)
    nginx.ok("systemctl", "enable", "--now", FOLLOWER)
    before, follower = program_of(nginx), main_pid(nginx)
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        restart.await_load(QUEUED)
        nginx.ok("dpkg", "--install", PACKAGE)
        ledger = load.stop()
    print(ledger)
    assert ledger.lost == 0
    assert program_of(nginx) == before
    assert nginx.ok("systemctl", "is-active", FOLLOWER).strip() == "active"
    assert main_pid(nginx) != follower


def main_pid(made: Container) -> str:
    return made.ok("systemctl", "show", "--property", "MainPID", FOLLOWER).strip()


def programs() -> dict[str, str | None]:
    """The program of each group of this thread's network namespace, by the kernel."""
    with lab.private_pins(None) as nothing, Observer(None, Path(str(nothing))) as observer:
        return {group.endpoint: group.program and group.program.name for group in observer.read().groups}


def purge(made: Container) -> Ledger:
    """Purge the package under load, and look at what is left."""
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        restart.await_load(QUEUED)
        made.ok("apt-get", "-qq", "purge", "-y", "reuseport-tool")
        ledger = load.stop()
    print(ledger)
    assert files(made.root) == set()
    assert made.ok("systemctl", "list-units", "--all", "--plain", "--no-legend", "*reuseport*") == ""
    assert set(programs().values()) == {None}
    return ledger


def test_purge_leaves_nothing(nginx: Container) -> None:
    nginx.ok("reuseport-tool", "attach", servers.PORT)
    nginx.ok("systemctl", "enable", "--now", FOLLOWER)
    assert any(programs().values())
    # There is no node_exporter, so this unit fails; systemd would remember it.
    assert nginx.run("systemctl", "start", "reuseport-tool-metrics.service").returncode != 0
    assert purge(nginx).lost == 0
    assert "reuseport" not in nginx.ok("ls", "/sys/fs/bpf")


LISTEN = """
import socket, time
listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", 9999)); listener.listen(); time.sleep(600)
"""


def test_purge_finds_other_places_too(nginx: Container) -> None:
    """The name in /sys/fs/bpf is another user's, so the tool mounts its own; a group is in another netns."""
    nginx.ok("dpkg", "--install", PACKAGE)
    nginx.ok("mkdir", "/sys/fs/bpf/reuseport-tool")
    nginx.ok("chown", "nobody", "/sys/fs/bpf/reuseport-tool")
    nginx.ok("ip", "netns", "add", NETNS)
    nginx.ok("systemd-run", "--unit", "listen", "ip", "netns", "exec", NETNS, "python3", "-c", LISTEN)
    tool = ("reuseport-tool", "--netns", NETNS)
    assert wait_until(lambda: nginx.run(*tool, "attach", 9999).returncode == 0, 30)
    nginx.ok("reuseport-tool", "attach", servers.PORT)
    nginx.ok("mountpoint", OWN_BPFFS)
    assert purge(nginx).lost == 0
    assert nginx.run("mountpoint", "-q", OWN_BPFFS).returncode != 0
    assert nginx.ok("stat", "--format=%U", "/sys/fs/bpf/reuseport-tool").strip() == "nobody"
    nginx.ok("rmdir", "/sys/fs/bpf/reuseport-tool")
    with netns.visit(nginx.inside(f"/run/netns/{NETNS}")):
        assert programs() == {"tcp://127.0.0.1:9999": None}
