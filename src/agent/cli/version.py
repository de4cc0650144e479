"""`fastpipe-agent version`: the versions and the chosen implementations."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

import click

import fastpipe

from .output import PROGRAM, print_line
from .process import choose_loop

__all__ = ["command"]


@click.command("version")
def command() -> None:
    """Print the versions of the running software, the twin of fastpipe, and the event loop."""
    print_line(f"{PROGRAM} {version_of(PROGRAM)}")
    print_line(f"fastpipe {fastpipe.IMPLEMENTATION}")
    factory = choose_loop("auto")
    library = "asyncio" if factory is None else factory.__module__.partition(".")[0]
    print_line(f"loop {library}" if factory is None else f"loop {library} {version_of(library)}")
    print_line(f"python {platform.python_version()} {platform.python_implementation()}")
