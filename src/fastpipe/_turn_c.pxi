# Whose callback is next, as `_turn_py` has it: a part of `_pipe_c.pyx`, which includes it.

cdef object homes = WeakKeyDictionary()  # by loop
cdef void* latest_home = NULL            # borrowed; the home that was asked for last, where a GIL guards it


cdef class Home:
    def __cinit__(self, loop=None):
        self.loop = NULL if loop is None else <void*>loop
        self.thread = thread_ident()

    def __dealloc__(self):
        global latest_home
        cdef Piece* piece
        if latest_home == <void*>self:
            latest_home = NULL
        while self.spare != NULL:
            piece = self.spare
            self.spare = piece.next
            PyMem_Free(piece)


@cython.final
@cython.freelist(4)
@cython.no_gc_clear  # so that `home` is there when it is freed uncalled
cdef class Turn:
    cdef Home home
    cdef object loop

    def __call__(self):
        cdef Home home = self.home
        self.home = None
        if home is not None:
            drain(home, self.loop)

    def __dealloc__(self):
        if self.home is not None:
            forget(self.home)

    def __repr__(self):
        return "<fastpipe turn>"


cdef Home home_of(object loop):
    global latest_home
    cdef Home home
    if HAS_GIL and latest_home != NULL and (<Home>latest_home).loop == <void*>loop:
        return <Home>latest_home
    home = homes.get(loop)
    if home is None:
        home = homes.setdefault(loop, Home(loop))
    if HAS_GIL:
        latest_home = <void*>home
    return home


cdef inline void append_due(Home home, PipeEnd end) noexcept:
    end.queued = True
    Py_INCREF(end)
    end.next_due = NULL
    if home.last_due == NULL:
        home.first_due = <void*>end
    else:
        (<PipeEnd>home.last_due).next_due = <void*>end
    home.last_due = <void*>end


cdef inline void* pop_due(Home home) noexcept:
    """The first of the queue, and the queue's reference with it."""
    cdef void* end = home.first_due
    home.first_due = (<PipeEnd>end).next_due
    if home.first_due == NULL:
        home.last_due = NULL
    (<PipeEnd>end).queued = False
    return end


cdef int wake_home(Home home, PipeEnd end) except -1:
    append_due(home, end)
    if not home.scheduled and not home.draining:
        schedule(home, end.loop)
    return 0


cdef int schedule(Home home, object loop) except -1:
    cdef Turn turn = Turn.__new__(Turn)
    turn.loop = loop
    home.scheduled = True
    try:
        loop.call_soon(turn)
    except BaseException:
        forget(home)
        raise
    turn.home = home
    return 0


cdef inline void defer(Home home, PipeEnd end) noexcept:
    """Leave the end's next callback to the next turn. The list has a reference of its own, as the queue."""
    end.deferred = True
    end.queued = True
    Py_INCREF(end)
    end.next_due = NULL
    if home.last_deferred == NULL:
        home.first_deferred = <void*>end
    else:
        (<PipeEnd>home.last_deferred).next_due = <void*>end
    home.last_deferred = <void*>end


cdef inline void release_deferred(Home home) noexcept:
    """Put what was deferred behind the queue."""
    if home.first_deferred != NULL:
        if home.last_due == NULL:
            home.first_due = home.first_deferred
        else:
            (<PipeEnd>home.last_due).next_due = home.first_deferred
        home.last_due = home.last_deferred
        home.first_deferred = NULL
        home.last_deferred = NULL


cdef void forget(Home home) noexcept:
    home.scheduled = False
    release_deferred(home)
    while home.first_due != NULL:
        Py_XDECREF(<PyObject*>pop_due(home))


cdef inline bint budget_spent(Home home) noexcept:
    return home.calls >= TURN_CALLS or home.bytes >= TURN_BYTES


cdef int drain(Home home, object loop) except -1:
    cdef void* end
    home.scheduled = False
    if home.draining:
        return 0
    home.thread = thread_ident()
    home.draining = True
    home.eof_delivered = False
    home.calls = 0
    home.bytes = 0
    try:
        while home.first_due != NULL and not budget_spent(home):
            end = pop_due(home)
            home.calls += 1
            try:
                step(<PipeEnd>end)
            finally:
                if not (<PipeEnd>end).queued and not nothing_due(<PipeEnd>end) and next_event(<PipeEnd>end) != NONE:
                    append_due(home, <PipeEnd>end)
                Py_XDECREF(<PyObject*>end)
    finally:
        home.draining = False
        release_deferred(home)
        if home.first_due != NULL and not home.scheduled:
            schedule(home, loop)
    return 0
