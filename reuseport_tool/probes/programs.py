"""Programs: compiled, loaded, attached to a group and taken off again, counted."""

from __future__ import annotations

import errno

from reuseport_tool.errors import MissingCapability, Unsupported
from reuseport_tool.kernel import bpf, bytecode, compiler, loopback, netns, program, sockets
from reuseport_tool.kernel.bytecode import Verdict
from reuseport_tool.kernel.program import AttachType, ProgramType
from reuseport_tool.probes.engine import Probe

_PORT = 8080  # of a namespace where nothing else is


def loads_migrating_program() -> bool:
    """Whether the kernel tells SELECT_OR_MIGRATE from other attach types. Raises OSError (EPERM).

    Kernels before 5.14 take any attach type for sk_reuseport and ignore it, so that a wrong one is
    tried, too (kernel/bpf/syscall.c, bpf_prog_load_check_attach_type()).
    """
    return _loads_for(AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE) and not _loads_for(AttachType.TRACE_ITER)


def _loads_for(attach_type: AttachType) -> bool:
    try:
        bytecode.load(Verdict.PASS, attach_type).close()
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _bcc() -> str:
    source = program.bpf_dir() / "bench" / "bench_pass.c"
    kind, name = ProgramType.SK_REUSEPORT, source.stem
    try:
        # Not from the cache: the question is whether the compiler works.
        compiled = compiler.compile_apart(source.name, source.read_bytes(), {})
        code = compiled.functions[name]
        program.load_code(code, kind, AttachType.NONE, name=name, license_text=compiled.license).close()
    except MissingCapability:
        return "compiles without kernel headers; loading is not permitted"
    return "compiles and loads without kernel headers"


def _load() -> str:
    bytecode.load(Verdict.PASS).close()
    return "loaded one of two instructions"


def _attach() -> str:
    with netns.throw_away(), bytecode.load(Verdict.DROP) as dropping, loopback.listener(_PORT) as sock:
        sockets.attach_program(sock.fileno(), dropping)
        if _connects():
            raise Unsupported("the program is attached, but does not decide")
    return "the program refused a connection"


def _detach() -> str:
    with netns.throw_away(), bytecode.load(Verdict.DROP) as dropping, loopback.listener(_PORT) as sock:
        sockets.attach_program(sock.fileno(), dropping)
        sockets.detach_program(sock.fileno())
        if not _connects():
            raise Unsupported("the program is detached, but still decides")
    return "connections pass again"


def _connects() -> bool:
    try:
        loopback.connect(_PORT).close()
        return True
    except ConnectionRefusedError:
        return False


def _attach_type() -> str:
    if not loads_migrating_program():
        raise Unsupported("the kernel does not know the attach type")
    return "loaded one; a wrong attach type is refused"


def _statistics() -> str:
    with (
        netns.throw_away(),
        bytecode.load(Verdict.PASS) as passing,
        loopback.listener(_PORT) as sock,
        bpf.enable_stats(),
    ):
        sockets.attach_program(sock.fileno(), passing)
        loopback.connect(_PORT).close()
        runs = passing.info().run_count
    if runs != 1:
        raise Unsupported(f"{runs} runs were counted for one connection")
    return "counted the one run of a program"


_GROUP = ("CAP_SYS_ADMIN", "CAP_BPF")
PROBES = (
    Probe(name="BCC", since="4.19", run=_bcc),
    Probe(name="sk_reuseport program", since="4.19", needs=("CAP_BPF",), run=_load),
    Probe(name="attach to a group", since="4.19", needs=_GROUP, run=_attach),
    Probe(name="detach from a group", since="5.3", needs=_GROUP, run=_detach),
    Probe(name="SELECT_OR_MIGRATE", since="5.14", needs=("CAP_BPF",), run=_attach_type),
    Probe(name="BPF statistics", since="5.8", needs=_GROUP, run=_statistics),
)
