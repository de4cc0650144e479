"""An HTTP/2 connection, either role, for every use: it hands bytes of DATA up, and knows nothing of what they are."""

from fastpipe.extensions import select_twins

select_twins(__path__)
