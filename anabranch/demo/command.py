"""`anabranch demo`, from its options to what it prints and leaves behind."""

import contextlib
import json
import sys

from rich.console import Console

from anabranch.demo.folder import Folder
from anabranch.demo.run import Interrupted, Options, run_demo
from anabranch.demo.screen import make_screen
from anabranch.demo.summary import print_summary, summary

INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended


def demo_command(options: Options, *, keep: bool, as_json: bool) -> int:
    """Run the demo, print what it came to, leave report, model and summary; returns the exit code.

    0: all is well. 1: a check failed (ledgers, replay, a program that fell). 130: ended by Ctrl-C, and all programs
    with it. Raises `ConfigError`; the folder then stays, with its logs.
    """
    console = Console(stderr=as_json)
    screen = make_screen(console)
    folder = Folder(options.output.resolve())
    try:
        outcome = run_demo(options, screen)
    except Interrupted as end:
        screen.close()
        console.print(f"stopped: {end.reached}; every process has ended", highlight=False, soft_wrap=True)
        if not keep:
            folder.tidy()
        return INTERRUPTED
    finally:
        screen.close()
    from anabranch.demo.report import write_report  # matplotlib, for the last second only

    write_report(outcome, folder.report)
    figures = summary(outcome)
    folder.summary.write_text(json.dumps(figures, indent=2) + "\n")
    print_summary(console, outcome)
    if keep:
        console.print(f"kept: {folder.path}", highlight=False, soft_wrap=True)
    else:
        folder.tidy()
    if as_json:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0 if figures["ok"] else 1
