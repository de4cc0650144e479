"""`python -m agent` is `fastpipe-agent`."""

from .cli.main import main

main()
