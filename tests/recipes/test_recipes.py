"""The recipes' servers under load: plain restarts lose connections, reloads lose none.

Only `make recipes` runs this file: it installs the servers, and takes some minutes. It ends with the table of
docs/recipes/README.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.kernel.resets import ResetCounter
from tests.recipes.conftest import Figures
from tests.recipes.servers import RECIPES, Recipe
from tests.servers import restart, servers
from tests.servers.servers import Server
from tests.tool import Tool

pytestmark = pytest.mark.usefixtures("servers_end")

RESTARTS = 5
QUICK_RESTARTS, MOST_RESTARTS = 20, 400  # of a server whose queue is nearly empty: not each of them loses
CLIENTS = 256
QUEUED = 32
ANSWERED = 100


@pytest.fixture(params=list(RECIPES))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For servers that give up root, too; pytest keeps its own folders to root."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@pytest.fixture
def server(recipe: Recipe, folder: Path) -> Server:
    made = recipe.make(folder)
    restart.start_listening(made)
    return made


def load_of(recipe: Recipe) -> Load:
    return Load(servers.ADDRESS, servers.PORT, CLIENTS, request=recipe.request)


def await_load(recipe: Recipe) -> None:
    """Wait until it hurts to restart."""
    if recipe.queues:
        restart.await_queue(QUEUED)
    else:
        restart.await_traffic(CLIENTS)


def test_plain_restarts_lose_connections(recipe: Recipe, server: Server, figures: Figures) -> None:
    restarts = 0
    with load_of(recipe) as load, ResetCounter([servers.PORT]) as resets:
        while restarts < (RESTARTS if recipe.queues else QUICK_RESTARTS) or not resets.total().lost:
            assert restarts < MOST_RESTARTS
            await_load(recipe)
            restart.plainly(server)
            restarts += 1
        ledger = load.stop()
    print(f"{server.name}: {restarts} restarts")
    figures.add(server.name, "plain", ledger)
    assert ledger.answered > ANSWERED
    assert ledger.lost


def test_reloads_lose_none(recipe: Recipe, server: Server, tool: Tool, figures: Figures) -> None:
    with load_of(recipe) as load:
        for _ in range(RESTARTS):
            await_load(recipe)
            options = ("--listeners", server.listeners, *stop(recipe, server))
            tool.ok("reload", servers.PORT, *options, "--", *server.command)
        ledger = load.stop()
    figures.add(server.name, "reload", ledger)
    lost_none(ledger)


def stop(recipe: Recipe, server: Server) -> tuple[str, ...]:
    if not recipe.settle_s:
        return ("--stop-signal", server.stop_signal)
    owners = " ".join(map(str, restart.owners_of(servers.listeners())))
    return ("--stop-command", f"sleep {recipe.settle_s:g}; kill -{server.stop_signal} {owners}")


def lost_none(ledger: Ledger) -> None:
    assert ledger.answered > ANSWERED
    assert ledger.lost == 0, ledger
