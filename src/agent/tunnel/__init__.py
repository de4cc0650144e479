"""The tunnel: packets over one HTTP/2 stream, for both roles."""

from ..runtime.extensions import choose_twins

choose_twins(__path__)
