"""Anything doubtful in the cache counts as absent, and is replaced."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import compiler, program_cache
from reuseport_tool.kernel.program import Module, Source
from reuseport_tool.kernel.program_cache import Code, CompileRequest, Store

CODE = Code(license=b"GPL", functions={"one": b"\x95" + bytes(7), "two": b""})
REQUEST = CompileRequest(text=b"int one(void) { return 0; }", name="one.c", constants={"A": 1}, may_be_kept=True)
COMPILER = "build-1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", str(path))
    return path


@pytest.fixture
def entry(folder: Path) -> Path:
    """The file of what was kept for REQUEST."""
    fresh(REQUEST).keep(CODE, COMPILER)
    (path,) = folder.iterdir()
    return path


def fresh(request: CompileRequest) -> CompileRequest:
    """One that has looked up nothing yet."""
    return replace(request)


def found(request: CompileRequest = REQUEST, compiled_by: str | None = COMPILER) -> Code | None:
    return fresh(request).find(compiled_by)


def test_what_is_kept_is_found(entry: Path, folder: Path) -> None:
    assert found() == CODE
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600


def test_nothing_is_found_in_an_empty_cache() -> None:
    assert found() is None


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, text=b"int one(void) { return 1; }"),
        replace(REQUEST, constants={"A": 2}),
        replace(REQUEST, constants={"A": 1, "B": 1}),
        replace(REQUEST, constants={}),
        replace(REQUEST, name="two.c"),
    ],
    ids=["text", "value of a define", "more defines", "fewer defines", "name"],
)
def test_other_code_is_not_this_code(entry: Path, other: CompileRequest) -> None:
    assert found(other) is None


def test_another_kernel_build_is_not_this_one(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_cache, "kernel_identity", lambda: "another build")
    assert found() is None


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of C programs."""
    path = tmp_path / "bpf"
    path.mkdir()
    (path / "fields.h").write_text("#define READ\n")
    (path / "one.c").write_text("int one(void) { return 0; }\n")
    monkeypatch.setattr(compiler, "bpf_dir", lambda: path)
    return path


def upgrade(ours: Path, name: str = "fields.h") -> None:
    """Another version of the tool is installed."""
    (ours / name).write_text("#define LOAD\n")


def test_another_header_is_not_this_one(ours: Path) -> None:
    fresh(REQUEST).keep(CODE, COMPILER)
    assert found() == CODE
    upgrade(ours)
    program_cache._first_seen.cache_clear()  # as in another process
    assert found() is None


@pytest.mark.parametrize("name", ["fields.h", "one.c"])
def test_a_run_stays_with_the_programs_that_it_began_with(ours: Path, name: str) -> None:
    source = Source(path=ours / "one.c")
    request = CompileRequest(
        text=(ours / "one.c").read_bytes(), name="one.c", constants=source.constants(), may_be_kept=True
    )
    request.keep(CODE, compiler.identity() or COMPILER)
    upgrade(ours, name)
    with Module(source) as module:
        assert module._code == CODE


@pytest.mark.parametrize("name", ["fields.h", "one.c", "new.h"])
def test_a_run_does_not_compile_the_programs_of_another_version(
    ours: Path, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "compile_apart", lambda *_: CODE)
    Module(Source(path=ours / "one.c")).close()
    (entry,) = folder.iterdir()
    entry.unlink()
    upgrade(ours, name)
    with pytest.raises(ToolError, match="replaced by another version"):
        Module(Source(path=ours / "one.c"))
    assert list(folder.iterdir()) == []


def test_code_of_another_compiler_is_taken_only_by_who_has_none(entry: Path) -> None:
    assert found(compiled_by="build-2") is None
    assert found(compiled_by=None) == CODE


def _truncate(entry: Path) -> None:
    os.truncate(entry, entry.stat().st_size - 1)


def _empty(entry: Path) -> None:
    os.truncate(entry, 0)


def _flip_a_bit(entry: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)


def _append(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes() + b"\0")


def _others_can_write(entry: Path) -> None:
    entry.chmod(0o602)


def _the_group_can_write(entry: Path) -> None:
    entry.chmod(0o620)


def _link(entry: Path) -> None:
    entry.rename(entry.parent.parent / "moved")
    entry.symlink_to(entry.parent.parent / "moved")


def _fifo(entry: Path) -> None:
    entry.unlink()
    os.mkfifo(entry, 0o600)


def _renamed_from_another(entry: Path) -> None:
    other = replace(REQUEST, constants={"A": 2})
    other.keep(Code(license=b"GPL", functions={"one": b"other"}), COMPILER)
    (path,) = [path for path in entry.parent.iterdir() if path != entry]
    path.rename(entry)


@pytest.mark.parametrize(
    "damage",
    [
        *(_truncate, _empty, _flip_a_bit, _append, _others_can_write, _the_group_can_write, _link, _fifo),
        _renamed_from_another,
    ],
)
def test_a_doubtful_entry_is_absent_and_replaced(entry: Path, damage: Callable[[Path], None]) -> None:
    damage(entry)
    assert found() is None
    fresh(REQUEST).keep(CODE, COMPILER)
    assert found() == CODE
    assert stat.S_ISREG(entry.lstat().st_mode)
    assert stat.S_IMODE(entry.lstat().st_mode) == 0o600


def test_a_half_written_entry_of_a_killed_run_is_never_read(folder: Path) -> None:
    request = fresh(REQUEST)
    folder.mkdir(mode=0o700)
    (folder / f".{request._key}.0123456789abcdef").write_bytes(b"half")
    assert request.find(COMPILER) is None
    request.keep(CODE, COMPILER)
    assert found() == CODE


@pytest.mark.parametrize("mode", [0o707, 0o770, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(entry: Path, folder: Path, mode: int) -> None:
    folder.chmod(mode)
    assert found() is None
    before = sorted(folder.iterdir())
    fresh(replace(REQUEST, name="two.c")).keep(CODE, COMPILER)
    assert sorted(folder.iterdir()) == before


def test_a_linked_folder_is_not_used(entry: Path, folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert found() is None


def test_a_file_in_the_place_of_the_folder_is_no_error(folder: Path) -> None:
    folder.write_text("")
    fresh(REQUEST).keep(CODE, COMPILER)
    assert found() is None


def test_a_full_disk_leaves_nothing_behind(entry: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program_cache, "_write", full)
    fresh(replace(REQUEST, name="two.c")).keep(CODE, COMPILER)
    assert list(folder.iterdir()) == [entry]
    assert found() == CODE


def _keep_and_find(number: int) -> bool:
    for _ in range(50):
        fresh(REQUEST).keep(CODE, COMPILER)
        if found() != CODE:
            return False
    return True


def test_processes_at_once_always_see_a_whole_entry(folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert all(pool.map(_keep_and_find, range(4), chunksize=1))
    assert [path.name[0] != "." for path in folder.iterdir()] == [True]


def test_the_oldest_entries_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_cache, "_ENTRIES_MAX", 3)
    store = Store(folder)
    names = [f"{number:064x}" for number in range(5)]
    assert store.put(names[0], b"x")
    (folder / "somebody's").write_text("not an entry")
    os.utime(folder / "somebody's", (0, 0))
    for number, name in enumerate(names):
        assert store.put(name, b"x")
        os.utime(folder / name, (number, number))
    assert sorted(path.name for path in folder.iterdir()) == [*names[2:], "somebody's"]


def test_an_empty_variable_turns_it_off(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", "")
    assert program_cache.store() is None
    assert found() is None


def test_code_that_may_not_be_kept_is_not(folder: Path) -> None:
    fresh(replace(REQUEST, may_be_kept=False)).keep(CODE, COMPILER)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("text", "only_ours"),
    [
        ('#include "reuseport.h"\nREUSEPORT_POLICY(x) { return 0; }\n', True),
        ('#include "sockets/iterator.h"\n', True),
        ("int x;\n", True),
        ('#include "/tmp/other.h"\n', False),
        ('#include "../other.h"\n', False),
        ("#include <linux/types.h>\n", False),
        ("#include NAME\n", False),
        ('#inc\\\nlude "/tmp/other.h"\n', False),
        ('%:include "/tmp/other.h"\n', False),
        ('#include "reuseport.h" \\\n\n#embed "x"\n', False),
        ('#if __has_include("/tmp/other.h")\n#endif\n', False),
    ],
)
def test_whether_a_stranger_s_text_includes_our_headers_only(text: str, only_ours: bool) -> None:
    assert program_cache.includes_only_ours(text.encode()) is only_ours


def test_a_build_of_the_compiler_is_told_by_its_build_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = b"\4\0\0\0\3\0\0\0\3\0\0\0GNU\0abc\0"
    header = b"\x7fELF\x02" + bytes(27) + (64).to_bytes(8, "little") + bytes(14) + b"\x38\0\1\0" + bytes(6)
    program = b"\4\0\0\0" + bytes(4) + (120).to_bytes(8, "little") + bytes(16)
    program += len(note).to_bytes(8, "little") + bytes(16)
    library = tmp_path / "libbcc.so.0"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    library.write_bytes(header + program + note)
    assert compiler.identity() == b"abc".hex()
    library.write_bytes(b"no ELF")
    assert compiler.identity() == f"6-{library.stat().st_mtime_ns}"
