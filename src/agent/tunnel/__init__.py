"""The tunnel: packets over one HTTP/2 stream, for both roles."""

from fastpipe.extensions import select_twins

select_twins(__path__)
