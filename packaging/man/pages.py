"""A man page for the command and for each of its verbs: `python3 packaging/man/pages.py FOLDER`.

click-man writes what click knows. The group is lazy, so it is populated first; examples, exit codes and references
to the other pages are added.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click_man.man import ManPage

from reuseport_tool import __version__
from reuseport_tool.cli.main import cli

NAME = "reuseport-tool"
EXIT_CODES = (
    (0, "Done."),
    (1, "Failed; for status --check: there is a problem."),
    (2, "The command line makes no sense."),
    (3, "A capability is missing."),
    (4, "This kernel or system does not support it."),
    (5, "A BPF program did not compile, or the verifier refused it."),
    (6, "No such group, listener, process or namespace."),
    (7, "A conflict: another run has the lock, or a foreign program is attached."),
    (8, "The reload failed and was rolled back."),
    (130, "Interrupted, and what had been begun is undone."),
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for context in contexts(click.Context(cli, info_name=NAME)):
        name = context.command_path.replace(" ", "-")
        (folder / f"{name}.1").write_text(page(context))


def contexts(context: click.Context) -> Iterator[click.Context]:
    """The context of a command and of all below it."""
    yield context
    for name, command in verbs(context):
        if not command.hidden:
            yield from contexts(click.Context(command, info_name=name, parent=context))


def verbs(context: click.Context) -> list[tuple[str, click.Command]]:
    group = context.command
    if not isinstance(group, click.Group):
        return []
    found = ((name, group.get_command(context, name)) for name in group.list_commands(context))
    return [(name, command) for name, command in found if command is not None]


def page(context: click.Context) -> str:
    command = context.command
    made = ManPage(context.command_path)
    made.version = f"{NAME} {__version__}"
    made.short_help = command.get_short_help_str(limit=200)
    made.synopsis = " ".join(command.collect_usage_pieces(context))
    made.description = roff(description(command)[0])
    made.options = [(option, roff(text)) for option, text in records(context)]
    made.commands = [(name, roff(verb.get_short_help_str(limit=200))) for name, verb in verbs(context)]
    return str(made) + "".join(sections(context))


def description(command: click.Command) -> tuple[str, list[str]]:
    """What the help says, and the examples at its end."""
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\nExamples:\n")
    return text, [line.strip() for line in examples.splitlines()]


def records(context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield record


def sections(context: click.Context) -> Iterator[str]:
    examples = description(context.command)[1]
    if examples:
        yield ".SH EXAMPLES\n.nf\n" + "".join(f"{roff(line)}\n" for line in examples) + ".fi\n"
    yield ".SH EXIT STATUS\n" + "".join(f".TP\n\\fB{code}\\fP\n{roff(text)}\n" for code, text in EXIT_CODES)
    yield (
        ".SH ENVIRONMENT\nEvery option can be given as a variable: REUSEPORT_TOOL, the verb and the option in capitals "
        "and joined by underscores. REUSEPORT_TOOL_NETNS is one.\n"
    )
    others = [name for name in see_also(context) if name != context.command_path]
    if others:
        yield ".SH SEE ALSO\n" + ",\n".join(f"\\fB{roff(name.replace(' ', '-'))}\\fP(1)" for name in others) + "\n"


def see_also(context: click.Context) -> list[str]:
    root = context.find_root()
    return [NAME, *(f"{NAME} {name}" for name, _ in verbs(root))]


def roff(text: str) -> str:
    """Text that groff takes literally; \\b, by which click keeps lines, becomes a block without filling."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    lines = [f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines()]
    return "\n".join(line for line in lines if line != "\b").strip("\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
