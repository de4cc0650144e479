"""`python -m agent` is `fastpipe-agent`."""

from .cli import main

main()
