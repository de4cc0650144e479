# The types that `upstream.py` has when it is compiled.
cimport cython

from agent.proxy.clock cimport Clock, Stall
from agent.proxy.heads cimport Request
from agent.proxy.pieces cimport write_pieces
from agent.proxy.response_reader cimport ResponseReader
from agent.proxy.upstream_stream cimport UpstreamStream

cdef long long CHUNKED


@cython.final
cdef class Upstream(UpstreamStream):
    cdef object __weakref__
    # Of the connection.
    cdef public Upstreams pool
    cdef public object key
    cdef public object made
    cdef public object transport
    cdef public bint is_tls
    cdef public Stall stall
    cdef public bint _reading_paused
    cdef public ResponseReader _reader
    # Of the exchange that uses it.
    cdef public bint _is_chunked
    cdef public object _tunnel, held
    # Of the pool, by its clock.
    cdef public double idle_until

    cpdef bint is_usable(self)


cdef class Upstreams:
    # The constructor's arguments.
    cdef public object limits
    cdef public object _ssl_context, _generation
    # Connections by key, all of them, and the `connect`s whose connections are used no more.
    cdef public dict _idle
    cdef public set _open, _ended
    # The sweep of what idles, and the trust roots that it saw last.
    cdef public Clock _clock
    cdef public object _swept_generation
    cdef public bint _generation_failed
    # The end.
    cdef public bint _closing
    cdef public object _closed
    # The HTTP/2 connections.
    cdef public object _http2

    cpdef object key(self, target)

    @cython.locals(idle=list, upstream=Upstream)
    cpdef UpstreamStream take(self, target)

    @cython.locals(idle=list)
    cpdef release(self, Upstream upstream)
    cpdef opened(self, Upstream upstream)

    @cython.locals(idle=list)
    cpdef retire(self, Upstream upstream)
    cpdef lost(self, Upstream upstream)
