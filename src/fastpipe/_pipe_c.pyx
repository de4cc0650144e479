# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=False, initializedcheck=False
# cython: binding=False, embedsignature=False, freethreading_compatible=True
"""The fast twin of `_pipe_py`. The docstring of `_pipe_py` explains the mechanism and the invariants I1 to I10.

The same calls make the same callbacks in the same order, with the same errors. Only the data structures differ. Pieces
are C structs that hold a reference to bytes and point into them. The queue of due ends is linked through the ends. An
idle end owns nothing except its fields, which are in `_pipe_c.pxd`. The Python twin has separate modules. Here each of
them is a .pxi file of one module, so calls between them cost nothing.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport (
    PyBUF_FULL_RO, PyBuffer_FillInfo, PyBuffer_IsContiguous, PyBuffer_Release, PyBuffer_ToContiguous,
    PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_FromObject
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.string cimport memcpy

import asyncio
import time
import warnings
from weakref import WeakKeyDictionary

from fastpipe import _errors
from fastpipe._errors import PipeBrokenError, PipeBusyError, PipeClosedError
from fastpipe._facade import PipeEnd as _Facade
from fastpipe._limits import TURN_BYTES as _TURN_BYTES, TURN_CALLS as _TURN_CALLS
from fastpipe._limits import checked_limit, checked_max_chunk, water_marks
from fastpipe._pool import Pool
from fastpipe._socket import SENDFILE_FALLBACK, PipeSocket

cdef extern from "_cpython.h":
    const bint DEBUG "FASTPIPE_DEBUG"
    const bint HAS_GIL "FASTPIPE_HAS_GIL"
    size_t thread_ident "fastpipe_thread"() noexcept nogil
    int call_in "fastpipe_call_in"(PyObject* context, PyObject* callable, PyObject* argument) noexcept
    int call_plainly "fastpipe_call"(PyObject* callable, PyObject* argument) noexcept
    object call_method "fastpipe_method"(PyObject* context, PyObject* self, PyObject* name, PyObject* argument)
    int reraise "fastpipe_raise"() except -1  # what the two have set
    void forget_dict "fastpipe_forget_dict"(object self) noexcept
    void have_dict "fastpipe_have_dict"(object self) noexcept
    object PyContext_CopyCurrent()
    Py_ssize_t PyNumber_AsSsize_t(object n, PyObject* overflow) except? -1  # NULL: clipped
    object fastpipe_view_base(object view)

__all__ = ["Chunk", "ChunkPool", "PipeEnd", "PipeStatistics", "create_pipe"]

cdef enum State:
    OPEN = 0
    BROKEN = 1
    CLOSING = 2
    LOST = 3

cdef enum Event:                # the callback that is due: see `_next` in the Python twin
    NONE = 0
    CONNECT = 1
    RESUME = 2
    DELIVER = 3
    DELIVER_EOF = 4
    TELL_LOST = 5
    LOST_UNHEARD = 6

cdef enum FastPath:                # how bytes reach the protocol without further checks (I9)
    NOT = 0
    BY_TURN = 1
    INLINE = 2

cdef tuple STATE_NAMES = ("open", "broken", "closing", "lost")
cdef int TURN_CALLS = _TURN_CALLS
cdef Py_ssize_t TURN_BYTES = _TURN_BYTES
cdef int SPARE_PIECES = 64      # kept for the next writes: 2 KiB at most

cdef object get_running_loop = asyncio._get_running_loop
cdef object require_running_loop = asyncio.get_running_loop
cdef object BufferedProtocol = asyncio.BufferedProtocol
cdef object monotonic = time.monotonic
cdef bytes NO_BYTES = b""

# The counts of a debug build. Other builds never change them.
cdef long long pairs_made = 0, ends_freed = 0, pieces_made = 0, pieces_freed = 0, views_made = 0, views_freed = 0


def debug_counts():
    """Return how many objects a FASTPIPE_DEBUG=1 build has made and freed, as a dict. Other builds return None."""
    if not DEBUG:
        return None
    return {
        "pairs_made": pairs_made, "ends_freed": ends_freed, "pieces_made": pieces_made, "pieces_freed": pieces_freed,
        "views_made": views_made, "views_freed": views_freed,
    }


cdef int check(PipeEnd end) except -1:
    """Assert the invariants of an end outside of calls. Debug builds do this after every call and callback."""
    cdef Py_ssize_t size = 0
    cdef Piece* piece = end.first
    while piece != NULL:
        assert piece.length > 0, "I1: an empty piece"
        assert PyBytes_CheckExact(<object>piece.owner) or PyMemoryView_Check(<object>piece.owner), "I2"
        size += piece.length
        if piece.next == NULL:
            assert piece == end.last, "I1: the last piece"
        piece = piece.next
    assert size == end.size and (end.first == NULL) == (end.last == NULL), "I1: the size"
    assert end.state != LOST or end.first == NULL, "I1: bytes in a lost end"
    assert end.peer == NULL or (<PipeEnd>end.peer).peer == <void*>end, "I8: one-sided"
    assert not end.linked or end.peer != NULL, "I8: a link to nobody"
    assert end.state != OPEN or not end.linked or (<PipeEnd>end.peer).state == OPEN, "I8: a link to a finished end"
    assert not end.fast_path or end.fast_path == fast_path_of(end), "I9"
    assert end.state != OPEN or end.strong_peer is None or (end.linked and end.strong_peer.protocol is not None), "I7"
    if not end.queued and not end.busy and not end.queue.draining and not end.queue.depth and end.loop is not None:
        assert next_event(end) == NONE or end.loop.is_closed(), "I4: due and not queued"
    return 0

include "_queue_c.pxi"
include "_waiting_c.pxi"


# ---- what is due, and how it is made

cdef inline PipeEnd link(PipeEnd end):
    return <PipeEnd>end.peer if end.linked else None


cdef inline Py_ssize_t unread(PipeEnd end) noexcept:
    return (<PipeEnd>end.peer).size if end.linked else 0


cdef inline void unlink(PipeEnd end) noexcept:
    end.linked = False
    end.strong_peer = None


cdef inline Event next_event(PipeEnd end) noexcept:
    if end.protocol is None:
        return LOST_UNHEARD if end.state == CLOSING else NONE
    if not end.made:
        return CONNECT
    if end.state == OPEN:
        if end.protocol_paused and unread(end) <= end.low_water:
            return RESUME
        if not end.reading_paused:
            if end.first != NULL:
                return DELIVER
            if end.eof_in and not end.eof_delivered:
                return DELIVER_EOF
        return NONE
    if end.state == BROKEN and end.first != NULL and not end.reading_paused:
        return DELIVER
    return NONE if end.state == LOST else TELL_LOST


cdef int wake(PipeEnd end) except -1:
    if not end.queued and end.loop is not None and next_event(end) != NONE:  # I4
        enqueue(end.queue, end)
    return 0


cdef int wake_quietly(PipeEnd end) except -1:
    try:
        wake(end)
    except RuntimeError:
        lost_unheard(end)
        if end.state == LOST:
            end.protocol = None
            end.receive = None
            end.context = None
    return 0


cdef inline bint nothing_due(PipeEnd end) noexcept:
    """Whether nothing is due, as far as can be seen at a glance."""
    return end.fast_path and end.first == NULL


cdef inline int step(PipeEnd end) except -1:
    """Make the callback that is due first, if one is."""
    if end.fast_path == BY_TURN and end.first != NULL and whole(end.first, end.max_chunk):
        return deliver_fast(end)
    return step_slow(end)


cdef int step_slow(PipeEnd end) except -1:
    cdef Event event = next_event(end)
    cdef DeliveryQueue queue = end.queue
    cdef bint is_end = event == DELIVER_EOF or event == TELL_LOST
    if is_end and (queue.bytes or queue.eof_delivered) and not end.deferred:  # I10
        defer(queue, end)
        return 0
    end.deferred = False
    if event == DELIVER:
        deliver(end)
    elif event == CONNECT:
        connect(end)
    elif event == RESUME:
        resume_protocol(end)
    elif event == DELIVER_EOF:
        queue.eof_delivered = True
        deliver_eof(end)
    elif event == TELL_LOST:
        tell_lost(end)
    elif event == LOST_UNHEARD:
        lost_unheard(end)
    if DEBUG:
        check(end)
    return 0


cdef object call(PipeEnd end, object protocol, str name, PyObject* argument):
    """A callback with one argument, or none (NULL). (Inside another of this end the context is entered already.)"""
    cdef object context = end.context
    if end.busy:
        return call_method(NULL, <PyObject*>protocol, <PyObject*>name, argument)
    end.busy = True
    try:
        return call_method(<PyObject*>context, <PyObject*>protocol, <PyObject*>name, argument)
    finally:
        end.busy = False


cdef int report(PipeEnd end, object error, str message) except -1:
    end.loop.call_exception_handler(
        {"message": message, "exception": error, "transport": end, "protocol": end.protocol})
    return 0


cdef int fatal(PipeEnd end, object error, str message) except -1:
    report(end, error, message)
    if end.state == OPEN:
        finish(end, BROKEN, error, True)
    else:
        drop_waiting(end)
    return 0


cdef int connect(PipeEnd end) except -1:
    end.made = True  # I3
    try:
        call(end, end.protocol, "connection_made", <PyObject*>end)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        fatal(end, error, "Fatal error: protocol.connection_made() call failed.")
    if not end.protocol_paused and unread(end) > end.high_water:
        pause_protocol(end)
    return 0


cdef int pause_protocol(PipeEnd end) except -1:
    if end.state != OPEN or end.protocol is None or not end.made:
        return 0
    end.protocol_paused = True
    leave_fast_path(end)  # I9
    if end.stats is not None:
        stats_pause(end.stats)
    try:
        call(end, end.protocol, "pause_writing", NULL)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        report(end, error, "protocol.pause_writing() failed")
    if end.inline_:
        wake(end)
    return 0


cdef void leave_fast_path(PipeEnd end) noexcept:
    """This end, and what it writes, are to be looked at more closely: I9."""
    end.fast_path = NOT
    if end.linked:
        (<PipeEnd>end.peer).fast_path = NOT


cdef int resume_protocol(PipeEnd end) except -1:
    end.protocol_paused = False
    if end.stats is not None:
        stats_resume(end.stats)
    try:
        call(end, end.protocol, "resume_writing", NULL)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        report(end, error, "protocol.resume_writing() failed")
    return 0


cdef int deliver_inline(PipeEnd end, PyObject* data) except -1:
    """Deliver `data` directly (I9) and then waiting pieces, within the peer's write. `data` may be NULL."""
    cdef DeliveryQueue queue = end.queue
    if end.busy or end.queued:
        return 0
    if not queue.draining and not queue.depth:
        queue.calls = 0
        queue.bytes = 0
    queue.depth += 1
    try:
        if data != NULL:
            queue.calls += 1
            queue.bytes += PyBytes_GET_SIZE(<object>data)
            if receive(end, data):
                receiving_failed(end)
        while not nothing_due(end) and not budget_spent(queue):
            if end.fast_path and whole(end.first, end.max_chunk):
                queue.calls += 1
                deliver_fast(end)
            elif end.made and next_event(end) == DELIVER:
                queue.calls += 1
                deliver(end)
            else:
                break
    finally:
        queue.depth -= 1
        if not nothing_due(end):
            wake(end)
    return 0


cdef int deliver(PipeEnd end) except -1:
    while True:
        if end.buffered:
            deliver_buffer(end)
        else:
            deliver_data(end)
        if not end.inline_ or end.queued or end.first == NULL or budget_spent(end.queue):
            return 0
        if next_event(end) != DELIVER:
            return 0
        end.queue.calls += 1


cdef inline bint whole(Piece* piece, Py_ssize_t max_chunk) noexcept:
    """Whether the piece is a whole bytes object that one data_received may bring."""
    return (
        piece.length <= max_chunk
        and PyBytes_CheckExact(<object>piece.owner)
        and piece.length == PyBytes_GET_SIZE(<object>piece.owner)
    )


cdef inline int deliver_fast(PipeEnd end) except -1:
    """`deliver_data` where I9 has asked all its questions already."""
    cdef DeliveryQueue queue = end.queue
    cdef Piece* piece = end.first
    cdef PyObject* data = <PyObject*>piece.owner
    cdef bint failed
    end.size -= piece.length  # I1, I6
    queue.bytes += piece.length
    end.first = piece.next
    if end.first == NULL:
        end.last = NULL
    keep_piece(queue, piece)
    failed = receive(end, data)
    Py_XDECREF(data)
    return receiving_failed(end) if failed else 0


cdef int deliver_data(PipeEnd end) except -1:
    cdef Piece* piece = end.first
    cdef Py_ssize_t n = min(piece.length, end.max_chunk)
    cdef object data = piece_view(piece, n) if end.accepts_views else piece_bytes(piece, n)
    taken(end, n, 1)  # I6
    end.queue.bytes += n
    if end.receive is None:
        try:
            end.receive = end.protocol.data_received
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            return fatal(end, error, "Fatal error: protocol.data_received() call failed.")
    end.fast_path = fast_path_of(end)
    if end.fast_path:
        have_dict(end)
    return receiving_failed(end) if receive(end, <PyObject*>data) else 0


cdef inline bint receive(PipeEnd end, PyObject* data) noexcept:
    """`data_received`, books being kept. True where it failed: its exception is set."""
    cdef object callback = end.receive
    cdef object context = end.context
    cdef int failed
    if end.busy:
        return call_plainly(<PyObject*>callback, data) != 0
    end.busy = True
    failed = call_in(<PyObject*>context, <PyObject*>callback, data)
    end.busy = False
    return failed != 0


cdef FastPath fast_path_of(PipeEnd end) noexcept:
    """Return the fast path that I9 allows. On it, only bytes can be due, and no writer waits for space."""
    if (
        end.state == OPEN and end.made and end.receive is not None and not end.accepts_views and not end.buffered
        and not end.reading_paused and not end.eof_in and not end.protocol_paused and end.stats is None
        and end.linked and not (<PipeEnd>end.peer).protocol_paused and (<PipeEnd>end.peer).stats is None
    ):
        return INLINE if end.inline_ else BY_TURN
    return NOT


cdef int receiving_failed(PipeEnd end) except -1:
    try:
        reraise()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        fatal(end, error, "Fatal error: protocol.data_received() call failed.")
    return 0


cdef int deliver_buffer(PipeEnd end) except -1:
    cdef object protocol = end.protocol
    cdef Py_buffer view
    cdef Py_ssize_t n
    cdef object count
    try:
        count = min(end.size, end.max_chunk)
        buffer = call(end, protocol, "get_buffer", <PyObject*>count)
        writable(buffer, &view)
        if view.len == 0:
            PyBuffer_Release(&view)
            raise RuntimeError(_errors.EMPTY_BUFFER)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        fatal(end, error, "Fatal error: protocol.get_buffer() call failed.")
        return 0
    try:
        n = fill(end, <char*>view.buf, min(view.len, end.max_chunk)) if end.protocol is protocol else 0
    finally:
        PyBuffer_Release(&view)
    if n == 0:
        return 0
    end.queue.bytes += n
    try:
        count = n
        call(end, protocol, "buffer_updated", <PyObject*>count)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        fatal(end, error, "Fatal error: protocol.buffer_updated() call failed.")
    return 0


cdef int deliver_eof(PipeEnd end) except -1:
    end.eof_delivered = True
    try:
        keep_open = bool(call(end, end.protocol, "eof_received", NULL))
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        fatal(end, error, "Fatal error: protocol.eof_received() call failed.")
        return 0
    if not keep_open and end.state == OPEN:
        finish(end, CLOSING, None, False)
    return 0


cdef int tell_lost(PipeEnd end) except -1:
    cdef object error = end.error
    cdef object protocol = end.protocol
    lost_unheard(end)
    try:
        call(end, protocol, "connection_lost", <PyObject*>error)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as raised:
        report(end, raised, "protocol.connection_lost() failed")
    finally:
        end.protocol = None
        end.receive = None
        end.context = None
    return 0


cdef int lost_unheard(PipeEnd end) except -1:
    if end.state != OPEN:
        end.state = LOST  # I3
        drop_waiting(end)
        unlink(end)
        if end.stats is not None and end.protocol_paused:
            stats_resume(end.stats)
        tell_server(end)
    return 0


cdef inline int tell_server(PipeEnd end) except -1:
    cdef object detach = end.detach
    if detach is not None:
        end.detach = None
        detach(end)
    return 0


# ---- ending

cdef int finish(PipeEnd end, State state, object error, bint aborting) except -1:
    cdef PipeEnd peer = link(end)
    end.state = state
    end.error = error
    end.fast_path = NOT  # I9
    drop_waiting(end)
    if aborting:
        unlink(end)
    if peer is not None:
        unlink(peer)  # I8
        if aborting:
            break_end(peer, PipeBrokenError(_errors.PEER_ABORTED), True)
        else:
            peer.eof_in = True
            peer.fast_path = NOT  # I9
            wake_quietly(peer)
    if end.protocol is None and state == CLOSING:
        end.state = LOST
        unlink(end)
        tell_server(end)
    wake_quietly(end)
    return 0


cdef int break_end(PipeEnd end, object error, bint drop) except -1:
    if end.state == OPEN:
        end.state = BROKEN
        end.error = error
        end.fast_path = NOT  # I9
        unlink(end)
    if drop:
        drop_waiting(end)
    wake_quietly(end)
    return 0


cdef int pipe_close(PipeEnd end) except -1:
    check_thread(end)
    if end.state == OPEN:
        finish(end, CLOSING, None, False)
    return 0


cdef int pipe_abort(PipeEnd end) except -1:
    cdef PipeEnd peer
    check_thread(end)
    if end.state == OPEN:
        finish(end, CLOSING, None, True)
    elif end.state == CLOSING and unread(end):
        peer = link(end)
        unlink(end)
        break_end(peer, PipeBrokenError(_errors.PEER_ABORTED), True)
    return 0


# ---- writing and reading

cdef inline int check_thread(PipeEnd end) except -1:
    if end.queue is None or thread_ident() != end.queue.thread:  # None: the garbage collector is taking it apart
        raise RuntimeError(_errors.WRONG_THREAD)
    return 0


cdef inline void append_piece(PipeEnd end, Piece* piece) noexcept:
    if end.last == NULL:
        end.first = piece
    else:
        end.last.next = piece
    end.last = piece
    end.size += piece.length  # I1


cdef int pipe_write(PipeEnd end, object data) except -1:
    cdef Piece* piece
    cdef void* peer = end.peer
    cdef DeliveryQueue queue
    if peer != NULL and (<PipeEnd>peer).fast_path and PyBytes_CheckExact(data) and PyBytes_GET_SIZE(data):
        queue = end.queue
        if thread_ident() != queue.thread:
            raise RuntimeError(_errors.WRONG_THREAD)
        if (<PipeEnd>peer).fast_path == INLINE:
            return write_inline(end, <PipeEnd>peer, data)
        append_piece(<PipeEnd>peer, bytes_piece(queue, data))
        if not (<PipeEnd>peer).queued:
            enqueue(queue, <PipeEnd>peer)
        if (<PipeEnd>peer).size > end.high_water:
            pause_protocol(end)
        return 0
    check_thread(end)
    if not PyBytes_CheckExact(data):
        piece = piece_of(end.queue, data)
        if end.eof_sent or piece == NULL or end.state != OPEN:
            if piece != NULL:
                free_piece(end.queue, piece)
            if end.eof_sent:
                raise RuntimeError(_errors.WRITE_AFTER_EOF)
            return 0
    elif end.eof_sent:
        raise RuntimeError(_errors.WRITE_AFTER_EOF)
    elif PyBytes_GET_SIZE(data) == 0 or end.state != OPEN:
        return 0
    else:
        piece = bytes_piece(end.queue, data)
    return send(end, piece)


cdef int write_inline(PipeEnd end, PipeEnd borrowed, object data) except -1:
    cdef DeliveryQueue queue = end.queue
    cdef PipeEnd peer = borrowed  # strong, because a callback may free the peer
    if peer.busy or peer.queued:
        append_piece(peer, bytes_piece(queue, data))
    elif (
        peer.first != NULL or PyBytes_GET_SIZE(data) > peer.max_chunk
        or (budget_spent(queue) and (queue.draining or queue.depth))
    ):
        return send(end, bytes_piece(queue, data))
    else:
        deliver_inline(peer, <PyObject*>data)
    if not end.protocol_paused and unread(end) > end.high_water:
        pause_protocol(end)
    return 0


cdef int send(PipeEnd end, Piece* pieces) except -1:
    """Queue a list of pieces, at least one, at the peer. They are its own from here on, also where this raises."""
    cdef PipeEnd peer
    cdef Piece* piece = NULL
    cdef DeliveryQueue queue = end.queue
    if not end.linked:  # I8
        while pieces != NULL:
            piece = pieces
            pieces = piece.next
            free_piece(queue, piece)
        break_end(end, PipeBrokenError(_errors.PEER_GONE), False)
        return 0
    peer = <PipeEnd>end.peer
    if peer.last == NULL:
        peer.first = pieces
    else:
        peer.last.next = pieces
    while pieces != NULL:
        piece = pieces
        pieces = piece.next
        peer.size += piece.length
        if end.stats is not None:
            end.stats.chunks_written += 1
            end.stats.bytes_written += piece.length
    peer.last = piece
    if peer.protocol is not None and not peer.reading_paused:
        if peer.inline_:
            deliver_inline(peer, NULL)
        elif not peer.queued:
            enqueue(queue, peer)
    if not end.protocol_paused and unread(end) > end.high_water:
        pause_protocol(end)
    if DEBUG:
        check(end)
        check(peer)
    return 0


cdef int check_reader(PipeEnd end) except -1:
    check_thread(end)
    if end.protocol is not None:
        raise PipeBusyError(_errors.READ_BUSY)
    if end.first == NULL and end.state != OPEN:
        if isinstance(end.error, PipeBrokenError):
            raise PipeBrokenError(*end.error.args)
        raise PipeClosedError(_errors.READ_CLOSED)
    return 0


cdef object pipe_peek(PipeEnd end):
    check_reader(end)
    if end.first == NULL:
        return PyMemoryView_FromObject(NO_BYTES)
    return piece_view(end.first, end.first.length)


cdef int pipe_consume(PipeEnd end, Py_ssize_t n) except -1:
    check_reader(end)
    if not 0 <= n <= end.size:
        raise _errors.past_the_end(n, end.size)
    if n:
        taken(end, n, 1)
    return 0


cdef int writable(object buffer, Py_buffer* view) except -1:
    """Acquire a writable, C-contiguous buffer. The caller releases it. Raises TypeError."""
    if not PyObject_CheckBuffer(buffer):
        raise _errors.not_writable(buffer)
    PyObject_GetBuffer(buffer, view, PyBUF_FULL_RO)
    try:
        if view.readonly:
            raise _errors.not_writable(buffer)
        if not PyBuffer_IsContiguous(view, b"C"):
            raise TypeError(_errors.NOT_CONTIGUOUS)
    except BaseException:
        PyBuffer_Release(view)
        raise
    return 0


# ---- the types

@cython.final
cdef class PipeStatistics:
    """Counts of one end since the first call of `collect_statistics`. The object stays current."""

    def __cinit__(self):
        self.paused_at = -1

    @property
    def paused_s(self):
        """Seconds between pause_writing and resume_writing (or the end), a pause that lasts included."""
        cdef double running = 0.0 if self.paused_at < 0 else <double>monotonic() - self.paused_at
        return self.past_s + running


cdef int stats_pause(PipeStatistics stats) except -1:
    stats.pauses += 1
    stats.paused_at = monotonic()
    return 0


cdef int stats_resume(PipeStatistics stats) except -1:
    stats.past_s = stats.paused_s
    stats.paused_at = -1
    return 0


@cython.final
cdef class PipeEnd:
    """One end of a pipe: an asyncio.Transport, or without a protocol a byte stream that is read by hand.

    Its methods are described in the Python twin, `_pipe_py`.
    """

    _start_tls_compatible = True
    _sendfile_compatible = SENDFILE_FALLBACK

    def __cinit__(self):
        forget_dict(self)
        self.queue = no_queue
        self.state = LOST

    def __init__(self):
        raise TypeError(_errors.MADE_ELSEWHERE)

    @property
    def __class__(self):
        return _Facade

    @property
    def _protocol_paused(self):
        return bool(self.protocol_paused)

    # writing

    def write(self, data, /):
        """Send bytes. data: bytes-like; `bytes`, views of them or of a Chunk go by reference, else copied now."""
        pipe_write(self, data)

    def writelines(self, list_of_data, /):
        """`write` for each item, all or nothing: an item without a buffer raises before any is sent."""
        cdef Piece* first = NULL
        cdef Piece* last = NULL
        cdef Piece* piece
        check_thread(self)
        try:
            for data in list_of_data:
                piece = piece_of(self.queue, data)
                if piece == NULL:
                    continue
                if last == NULL:
                    first = piece
                else:
                    last.next = piece
                last = piece
            if self.eof_sent:
                raise RuntimeError(_errors.WRITE_AFTER_EOF)
            if first != NULL and self.state == OPEN:
                piece = first
                first = NULL
                send(self, piece)
        finally:
            while first != NULL:
                piece = first
                first = piece.next
                free_piece(self.queue, piece)

    def can_write_eof(self):
        """True."""
        return True

    def write_eof(self):
        """Half-close. The peer gets eof_received after all bytes. This end can still read."""
        cdef PipeEnd peer
        check_thread(self)
        if self.state != OPEN or self.eof_sent:
            return
        self.eof_sent = True
        peer = link(self)
        if peer is not None:
            peer.eof_in = True
            peer.fast_path = NOT  # I9
            wake(peer)

    def get_write_buffer_size(self):
        """Bytes that the peer has not taken yet."""
        return unread(self)

    def get_write_buffer_limits(self):
        """(low, high) water marks in bytes."""
        return self.low_water, self.high_water

    def set_write_buffer_limits(self, high=None, low=None):
        """Set the marks in bytes. Defaults of asyncio: 64 KiB, and a quarter of high."""
        check_thread(self)
        self.high_water, self.low_water = water_marks(high, low)
        if not self.protocol_paused and unread(self) > self.high_water:
            pause_protocol(self)
        elif self.state == OPEN:
            wake(self)

    # ending

    def is_closing(self):
        """Whether this end was closed, aborted or broken."""
        return self.state != OPEN

    def close(self):
        """Close both directions. The peer gets the written bytes, then EOF. Bytes that wait here are dropped."""
        pipe_close(self)

    def abort(self):
        """End both directions at once: untaken bytes are dropped, the peer gets PipeBrokenError."""
        pipe_abort(self)

    def __del__(self):
        if self.state != OPEN and self.peer == NULL:
            return
        if self.state == OPEN:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, stacklevel=1, source=self)
        if self.queue.thread == thread_ident() or self.loop is None:
            abandon(self)
        elif not self.loop.is_closed():  # back to its own thread, where it is also freed
            self.loop.call_soon_threadsafe(self._abandon)

    def _abandon(self):
        abandon(self)

    def __dealloc__(self):
        global ends_freed
        sever(self)
        free_waiting(self)
        if DEBUG:
            ends_freed += 1

    # protocol

    def set_protocol(self, protocol, /):
        """Call `protocol` from now on, in a copy of this context. The first protocol gets connection_made."""
        cdef PipeEnd peer
        if self.queue is None or self.queue is no_queue:
            raise RuntimeError(_errors.WRONG_THREAD)
        if self.loop is None:
            move_in(self, require_running_loop())
        elif thread_ident() != self.queue.thread:
            raise RuntimeError(_errors.WRONG_THREAD)
        elif not self.queue.scheduled and not self.queue.draining and self.loop.is_closed():  # with a turn, it isn't
            raise RuntimeError(_errors.LOOP_CLOSED)
        if self.state == LOST:
            return
        self.protocol = protocol
        self.receive = None
        self.fast_path = NOT  # I9
        self.context = None if protocol is None else PyContext_CopyCurrent()
        self.buffered = isinstance(protocol, BufferedProtocol)
        self.accepts_views = bool(getattr(protocol, "accepts_views", False))
        peer = link(self)
        if peer is not None and self.state == OPEN:
            peer.strong_peer = None if protocol is None else self  # I7
        wake(self)

    def get_protocol(self):
        """The protocol; None before the first and after connection_lost."""
        return self.protocol

    def pause_reading(self):
        """No data and no EOF for the protocol until resume_reading."""
        check_thread(self)
        if self.state == OPEN:
            self.reading_paused = True
            self.fast_path = NOT  # I9

    def resume_reading(self):
        """Deliver again, from the loop."""
        check_thread(self)
        if self.state == OPEN and self.reading_paused:
            self.reading_paused = False
            wake(self)

    def is_reading(self):
        """Whether this end is open and reading is not paused."""
        return self.state == OPEN and self.reading_paused == 0

    def get_extra_info(self, name, default=None):
        """`socket` (a stand-in without a descriptor), `peername`, `sockname` ('' unless set), and what was set."""
        if self.extra is not None and name in self.extra:
            return self.extra[name]
        if name in ("peername", "sockname"):
            return ""
        if name == "socket":
            return PipeSocket(self.get_extra_info("sockname"), self.get_extra_info("peername"))
        return default

    def _attach(self, detach, /):
        self.detach = detach

    def set_extra_info(self, name, value, /):
        """Set the value that `get_extra_info(name)` returns. For the creator of the pipe."""
        if self.extra is None:
            self.extra = {}
        self.extra[name] = value

    def collect_statistics(self):
        """The counts of this end, which begin with the first such call. Costs nothing until then."""
        if self.stats is None:
            leave_fast_path(self)  # I9
            self.stats = PipeStatistics()
            if self.protocol_paused:
                stats_pause(self.stats)
        return self.stats

    # reading by hand

    def peek(self):
        """Return a view of the next bytes, in place. Valid and unchanged until released. Empty if nothing waits."""
        return pipe_peek(self)

    def consume(self, n, /):
        """Take n bytes, 0 to all that wait. Raises ValueError for another count."""
        n = PyNumber_Index(n)
        check_reader(self)
        if not 0 <= n <= self.size:
            raise _errors.past_the_end(n, self.size)
        if n:
            taken(self, n, 1)

    def read(self, n=-1, /):
        """Take and return up to n bytes. -1: all that wait. A whole written `bytes` is returned as it is."""
        cdef Py_ssize_t count = PyNumber_AsSsize_t(n, NULL)
        cdef object data
        check_reader(self)
        if count < 0 or count > self.size:
            count = self.size
        if count == 0:
            return NO_BYTES
        if count == self.first.length:
            data = piece_bytes(self.first, count)
            taken(self, count, 1)
        else:
            data = PyBytes_FromStringAndSize(NULL, count)
            fill(self, PyBytes_AS_STRING(data), count)
        return data

    def readinto(self, buffer, /):
        """Take as many bytes as wait and fit into `buffer` (writable, C-contiguous). Return their count."""
        cdef Py_buffer view
        writable(buffer, &view)
        try:
            check_reader(self)
            return fill(self, <char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def at_eof(self):
        """Whether all was taken and the peer writes no more. False once this end is closed or broken: reads raise."""
        return self.state == OPEN and self.eof_in != 0 and self.first == NULL

    def __repr__(self):
        return f"<fastpipe.PipeEnd {STATE_NAMES[self.state]} waiting={self.size} unread={unread(self)}>"


cdef int abandon(PipeEnd end) except -1:
    end.fast_path = NOT  # I9
    end.protocol = None
    end.receive = None
    end.context = None
    if end.state == OPEN:
        finish(end, CLOSING, None, False)
    sever(end)
    return 0


cdef void sever(PipeEnd end) noexcept:
    """The two ends know each other no more: one of them is being freed."""
    if end.peer != NULL:
        (<PipeEnd>end.peer).peer = NULL
        (<PipeEnd>end.peer).linked = False
        (<PipeEnd>end.peer).fast_path = NOT
        end.peer = NULL
        end.linked = False


cdef void free_waiting(PipeEnd end) noexcept:
    """Like `drop_waiting`, for an end that is being freed. Its queue may already be freed."""
    global pieces_freed
    cdef Piece* piece
    while end.first != NULL:
        piece = end.first
        end.first = piece.next
        Py_XDECREF(<PyObject*>piece.owner)
        PyMem_Free(piece)
        if DEBUG:
            pieces_freed += 1


cdef int move_in(PipeEnd end, object loop) except -1:
    cdef PipeEnd peer = link(end)
    end.queue = queue_of(loop)
    end.loop = loop
    if peer is not None:
        peer.queue = end.queue
        peer.loop = loop
    return 0


cdef DeliveryQueue no_queue = DeliveryQueue()  # of an end not made by create_pipe, which no thread may call
no_queue.thread = 0


cdef inline PipeEnd new_end(DeliveryQueue queue, object loop, Py_ssize_t high, bint inline, Py_ssize_t max_chunk):
    cdef PipeEnd end = PipeEnd.__new__(PipeEnd)
    end.queue = queue
    end.loop = loop
    end.high_water = high
    end.low_water = high // 4
    end.max_chunk = max_chunk
    end.inline_ = inline
    end.linked = True
    end.state = OPEN
    return end


def create_pipe(*, limit=65536, inline=False, max_chunk=262144, loop=None):
    """Create two connected transports in memory. Bytes written to one arrive at the other.

    The pipe belongs to this thread, or to the loop's thread once the loop runs.

    Args:
        limit: high-water mark of each direction in bytes, 0 to `sys.maxsize`. The low-water mark is a quarter of it.
        inline: deliver data within `write`.
        max_chunk: the most bytes of one `data_received`, at least 1. None: every write whole.
        loop: the loop that calls protocols. None: the running loop, or no loop until `set_protocol`.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a value out of range.
        RuntimeError: if the loop is closed.
    """
    global pairs_made
    cdef Py_ssize_t high = checked_limit(limit) if limit is not 65536 else 65536  # who leaves the default asks nothing
    cdef Py_ssize_t chunk = checked_max_chunk(max_chunk) if max_chunk is not 262144 else 262144
    cdef DeliveryQueue queue
    cdef PipeEnd first, second
    if loop is None:
        loop = get_running_loop()
    elif loop.is_closed():
        raise RuntimeError(_errors.LOOP_CLOSED)
    queue = DeliveryQueue() if loop is None else queue_of(loop)
    first = new_end(queue, loop, high, inline, chunk)
    second = new_end(queue, loop, high, inline, chunk)
    first.peer = <void*>second
    second.peer = <void*>first
    if DEBUG:
        pairs_made += 1
    return first, second


include "_chunk_c.pxi"
