"""python -m vagrant.qemu test|run|shell|kernel|matrix: the verbs behind `make vm-…`.

Exit codes: 0 ok; 1 the tests failed in the guest; `run` returns the guest's own status; 100 the run
could not be prepared; 101 the VM was lost (panic, hang, no boot); 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vagrant.qemu import kernels, machine, matrix
from vagrant.qemu.cache import say
from vagrant.qemu.errors import VmError, from_os
from vagrant.qemu.images import image
from vagrant.qemu.signals import Stopped, raise_stopped

FAILED = 1


def main(arguments: list[str]) -> int:
    """Run one verb, turn its errors into a message and an exit code."""
    options = _parser().parse_args(arguments)
    raise_stopped()
    try:
        return int(options.verb(options))
    except VmError as error:
        return _report(error)
    except OSError as error:
        return _report(from_os(error))
    except Stopped as stopped:
        say(f"{stopped}; the VM and its files are gone")
        return stopped.exit_code


def _report(error: VmError) -> int:
    if error.log:
        print("\n".join(f"  | {line}" for line in error.log.strip().splitlines()[-25:]), file=sys.stderr)
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vagrant.qemu", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    for name, verb, text in (
        ("test", _test, "run the kernel tests and the proofs; the guest's verdict is the exit status"),
        ("run", _run, "run one shell command as root; its exit status is ours"),
        ("shell", _shell, "a prompt in the guest"),
        ("kernel", _kernel, "fetch or build the kernel, print its path"),
    ):
        sub = verbs.add_parser(name, help=text)
        sub.add_argument("kernel", metavar="KERNEL", help=f"one of: {', '.join(kernels.load())}")
        if name == "run":
            sub.add_argument("command", metavar="COMMAND")
        if name == "test":
            sub.add_argument("--report", type=Path, metavar="FILE", help="write what `matrix` needs to know, as JSON")
        sub.add_argument("--deadline", type=float, metavar="SECONDS", help="for the whole run")
        sub.set_defaults(verb=verb)
    sub = verbs.add_parser("matrix", help="test every kernel, print the table and write docs/kernels.md")
    sub.add_argument("kernels", nargs="*", metavar="KERNEL", help="only these")
    sub.set_defaults(verb=_matrix)
    return parser


def _test(options: argparse.Namespace) -> int:
    kernel = kernels.find(options.kernel)
    machine.check_host()
    bootable = image(kernel)
    outcome = matrix.run_tests(kernel, bootable, options.deadline)
    if options.report:
        matrix.write_report(options.report, bootable, outcome)
    say(f"{kernel.name}: {'passed' if outcome.status == 0 else 'tests FAILED'} in {outcome.duration_s:.0f} s")
    return FAILED if outcome.status else 0


def _run(options: argparse.Namespace) -> int:
    kernel = kernels.find(options.kernel)
    machine.check_host()
    deadline_s = options.deadline or kernel.deadline_s
    return machine.run(image(kernel), options.command, matrix.environment(kernel), deadline_s).status


def _shell(options: argparse.Namespace) -> int:
    kernel = kernels.find(options.kernel)
    if not os.isatty(0):
        raise VmError("a shell needs a terminal", hint="make vm-run KERNEL=… CMD='…' runs a command")
    machine.check_host()
    return machine.shell(image(kernel), matrix.environment(kernel))


def _kernel(options: argparse.Namespace) -> int:
    print(image(kernels.find(options.kernel)).vmlinuz)
    return 0


def _matrix(options: argparse.Namespace) -> int:
    machine.check_host()
    chosen = [kernels.find(name) for name in options.kernels] or list(kernels.load().values())
    return matrix.run(chosen, complete=not options.kernels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
