"""The table of commands.

A command is a function that returns an exit status. Positional-only parameters become positional arguments,
keyword-only ones become flags, and so do the fields of a settings dataclass; see `pellucid.commandline`. Help texts
come from the docstring's `Args`. The functions are in modules that import nothing heavy, so that help is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from pellucid.commandline.bind import bound
from pellucid.commandline.failures import sentence_of
from pellucid.core.errors import InputError, WorkFailed, near, plain_text, shown
from pellucid.core.registry import place
from pellucid.ideas import COMMANDS

LONGEST = 580  # characters of an error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 bad input or usage, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from pellucid import __version__

        print(f"pellucid {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        hint = near(name, COMMANDS, limit=0) or f"the commands are {', '.join(COMMANDS)}."
        return _fail(f"there is no command {shown(name)}: {hint}", 2)
    out = ""
    try:
        run = bound(command(name), f"pellucid {name}", words[1:])
        out = str(run.keywords.get("out") or "")
        return run()
    except InputError as error:
        return _fail(str(error), 2)
    except WorkFailed as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "Interrupted.", 128 + getattr(error, "signal", 2))
    except BrokenPipeError:  # the reader of our output is gone, as in `pellucid evaluate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(*sentence_of(error, out))


def _fail(sentence: str, status: int) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # only one of several processes prints
        whole = " ".join(sentence.split())
        end = "" if whole.endswith((".", "?", "!")) else "."
        print(f"pellucid: {plain_text(whole, LONGEST)}{end}", file=sys.stderr)
    return status


def command(name: str) -> Callable[..., int]:
    """The function of a command."""
    return place(COMMANDS[name])


def overview() -> str:
    """The table of commands, with the first line of each function's docstring."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {(command(name).__doc__ or '').splitlines()[0]}" for name in COMMANDS]
    lines = ["usage: pellucid COMMAND [...]", "", *rows, "", "pellucid COMMAND --help lists a command's flags."]
    return "\n".join(lines)
