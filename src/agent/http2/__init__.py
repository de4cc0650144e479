"""An HTTP/2 connection for both roles and every use. It passes the bytes of DATA up and does not interpret them."""

from fastpipe.extensions import select_twins

select_twins(__path__)
