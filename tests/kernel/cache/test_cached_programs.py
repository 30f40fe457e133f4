"""What comes out of the cache is what the compiler makes, and needs no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.autolowat import attachment
from reuseport_tool.autolowat.attachment import AttachmentPlan
from reuseport_tool.errors import Unsupported
from reuseport_tool.group import layout
from reuseport_tool.group.policy import ChosenPolicy, policy_source
from reuseport_tool.kernel import (
    autolowat,
    bpf,
    btf,
    compiler,
    held_sockets,
    iterator,
    listen_events,
    program,
    program_cache,
    resets,
    sock_destroy,
    socket_iterator,
)
from reuseport_tool.kernel.program import AttachType, ProgramType, Source
from reuseport_tool.models import Policy, Protocol
from reuseport_tool.models.autolowat import Engine
from tests.kernel.conftest import PORT
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]
ITERATOR = (ProgramType.TRACING, AttachType.TRACE_ITER)
NO_BCC = "import sys; sys.modules['bcc'] = None; from reuseport_tool.cli.main import main; main()"


@pytest.fixture(autouse=True)
def folder(root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", str(path))
    return path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def missing() -> Any:
            raise Unsupported("BCC is not there")

        monkeypatch.setattr(compiler, "_bcc", missing)

    return forbid


def _policy(policy: Policy) -> Source:
    return policy_source(program.bpf_dir() / "policy" / f"{policy.value.replace('-', '_')}.c")


def _iterators() -> Iterator[tuple[str, Source, str]]:
    for ordered in (False, True):
        yield f"listeners {ordered}", iterator.source(ordered=ordered), "bpf_iter__tcp"
        yield f"udp members {ordered}", iterator.udp_source(ordered=ordered), "bpf_iter__udp"
    yield "held sockets", held_sockets.source(), "bpf_iter__task_file"
    for protocol in Protocol:
        yield f"{protocol} sockets", socket_iterator.walk_source(protocol), f"bpf_iter__{protocol}"
        if sock_destroy.kfunc() is not None:
            yield f"{protocol} destroy", sock_destroy.source(protocol), f"bpf_iter__{protocol}"


def _maps(stack: ExitStack, source: Source) -> dict[str, int]:
    """Descriptors for whatever maps a source names."""
    if source.maps == layout.MAPS:
        return layout.link(layout.new_maps(stack))
    if "WANTED_FD" in source.maps:
        ring = stack.enter_context(
            bpf.Map.create(bpf.MapType.RINGBUF, "ring", key_size=0, value_size=0, max_entries=4096)
        )
        told = stack.enter_context(bpf.Map.create(bpf.MapType.ARRAY, "told", value_size=8))
        wanted = stack.enter_context(bpf.Map.create(bpf.MapType.HASH, "wanted", key_size=8))
        return {"RING_FD": ring.fd, "TOLD_FD": told.fd, "WANTED_FD": wanted.fd}
    if source.maps == resets.MAPS:
        return {name: entry.fd for name, entry in resets.new_maps(stack).items()}
    if source.maps == ("TARGETS_FD",):
        targets = bpf.Map.create(bpf.MapType.HASH, "targets", key_size=8, value_size=56)
        return {"TARGETS_FD": stack.enter_context(targets).fd}
    if source.maps == held_sockets.MAPS:
        return {held_sockets.MAPS[0]: stack.enter_context(held_sockets.new_map()).fd}
    return {}


def _tag(source: Source, function: str, kind: ProgramType, attach_type: AttachType) -> str:
    with ExitStack() as stack:
        maps = _maps(stack, source)
        kfuncs = {name: btf.function("bpf_sock_destroy") for name in source.kfuncs}
        loaded = program.load(source, function, kind, attach_type, maps | kfuncs)
        return stack.enter_context(loaded).info().tag


def _programs() -> Iterator[tuple[str, Source, str, ProgramType, AttachType]]:
    for policy in Policy:
        source = _policy(policy)
        yield policy, source, source.path.stem, ProgramType.SK_REUSEPORT, AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE
    for name, source, function in _iterators():
        yield name, source, function, *ITERATOR
    events = listen_events.tcp_source()
    yield "listen", events, events.path.stem, ProgramType.RAW_TRACEPOINT, AttachType.NONE
    counting = resets.source()
    yield "resets", counting, counting.path.stem, ProgramType.RAW_TRACEPOINT, AttachType.NONE
    yield "resets of ended", counting, "tcp_ended", ProgramType.RAW_TRACEPOINT, AttachType.NONE
    events = listen_events.udp_source()
    for hook in (AttachType.CGROUP_INET4_POST_BIND, AttachType.CGROUP_INET6_POST_BIND):
        yield f"bind {hook}", events, events.path.stem, ProgramType.CGROUP_SOCK, hook


def test_every_program_has_one_tag_compiled_or_cached(
    folder: Path, no_compiler: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = list(_programs())
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", "")
    compiled = {name: _tag(*rest) for name, *rest in programs}
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", str(folder))
    kept = {name: _tag(*rest) for name, *rest in programs}
    no_compiler()
    cached = {name: _tag(*rest) for name, *rest in programs}
    assert compiled == kept == cached
    assert len(set(compiled.values())) > len(Policy) + len(Protocol)


def test_autolowat_comes_from_the_cache(no_compiler: Callable[[], None]) -> None:
    plan = AttachmentPlan(engine=Engine.SOLO, framing="rpc", ports=())
    source = autolowat.source(Engine.SOLO, attachment.defines(plan))
    with program.Module(source) as compiled:
        expected = compiled._code.functions
    no_compiler()
    with program.Module(source) as cached:
        assert cached._code.functions == expected
    assert all(expected.values())


def test_without_the_cache_it_does_not_run_without_a_compiler(no_compiler: Callable[[], None]) -> None:
    """The tests above can fail."""
    no_compiler()
    with pytest.raises(Unsupported, match="BCC is not there"):
        program.Module(_policy(Policy.HASH))


def _without_bcc(tool: Tool, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NO_BCC, *tool.command(*arguments)[3:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_verbs_run_without_bcc_on_a_filled_cache(tool: Tool, server: Start) -> None:
    server("one")
    verbs = [("attach", PORT), ("status", PORT), ("sockets", "--endpoint", PORT), ("detach", PORT)]
    refused = _without_bcc(tool, *verbs[0])
    assert (refused.returncode, "BCC's Python module" in refused.stderr) == (4, True)
    for verb in verbs:
        tool.ok(*verb)
    for verb in verbs:
        done = _without_bcc(tool, *verb)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def own_policy(tmp_path: Path) -> Path:
    path = tmp_path / "mine.c"
    path.write_text('#include "reuseport.h"\nREUSEPORT_POLICY(mine)\n{\n\treturn 0;\n}\n')
    path.chmod(0o644)
    return path


def _load_own(path: Path) -> None:
    with ExitStack() as stack, ChosenPolicy(None, path) as chosen:
        chosen.fresh(stack)


def test_a_policy_of_one_s_own_is_kept(own_policy: Path, no_compiler: Callable[[], None]) -> None:
    _load_own(own_policy)
    no_compiler()
    _load_own(own_policy)
    own_policy.write_text(own_policy.read_text().replace("return 0", "return 1"))
    with pytest.raises(Unsupported):
        _load_own(own_policy)


def _anyone_may_write(path: Path) -> None:
    path.chmod(0o666)


def _somebody_else_owns(path: Path) -> None:
    os.chown(path, 1234, 0)


def _has_a_map_of_its_own(path: Path) -> None:
    text = path.read_text().replace("REUSEPORT_POLICY(mine)", "BPF_ARRAY(seen, u64, 1);\nREUSEPORT_POLICY(mine)")
    path.write_text(text.replace("return 0", "seen.increment(0);\n\treturn 0"))


@pytest.mark.parametrize("doubt", [_anyone_may_write, _somebody_else_owns, _has_a_map_of_its_own])
def test_a_doubtful_policy_is_compiled_each_time(
    own_policy: Path, folder: Path, doubt: Callable[[Path], None], no_compiler: Callable[[], None]
) -> None:
    doubt(own_policy)
    _load_own(own_policy)
    no_compiler()
    with pytest.raises(Unsupported):
        _load_own(own_policy)


def _somebody_else_s_folder(entry: Path) -> None:
    os.chown(entry.parent, 1234, 1234)


def _somebody_else_s_entry(entry: Path) -> None:
    os.chown(entry, 1234, 1234)


@pytest.mark.parametrize("foreign", [_somebody_else_s_folder, _somebody_else_s_entry])
def test_what_somebody_else_owns_is_not_loaded(
    folder: Path, foreign: Callable[[Path], None], no_compiler: Callable[[], None]
) -> None:
    program.Module(_policy(Policy.CPU)).close()
    (entry,) = folder.iterdir()
    foreign(entry)
    no_compiler()
    with pytest.raises(Unsupported):
        program.Module(_policy(Policy.CPU))


def test_a_foreign_entry_is_replaced(folder: Path, no_compiler: Callable[[], None]) -> None:
    program.Module(_policy(Policy.CPU)).close()
    (entry,) = folder.iterdir()
    os.chown(entry, 1234, 1234)
    program.Module(_policy(Policy.CPU)).close()
    assert entry.stat().st_uid == 0
    no_compiler()
    program.Module(_policy(Policy.CPU)).close()


@pytest.mark.parametrize("options", ["ro", "size=4k,nr_inodes=2"], ids=["read-only disk", "full disk"])
def test_a_disk_that_takes_nothing_is_no_error(folder: Path, options: str) -> None:
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "none", folder], check=True)
    try:
        if "nr_inodes" in options:
            (folder / "filler").write_bytes(b"x")
        program.Module(_policy(Policy.CPU)).close()
        assert program_cache.Store(folder).put("entry", b"x") is False
        assert [path.name for path in folder.iterdir()] in ([], ["filler"])
    finally:
        subprocess.run(["umount", folder], check=True)
