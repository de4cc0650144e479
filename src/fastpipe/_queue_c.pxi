# Orders the callbacks of pipes, like `_queue_py`. `_pipe_c.pyx` includes this file.

cdef object queues = WeakKeyDictionary()  # by loop
cdef void* latest_queue = NULL            # borrowed: the last result of queue_of. Set only with a GIL


cdef class DeliveryQueue:
    def __cinit__(self, loop=None):
        self.loop = NULL if loop is None else <void*>loop
        self.thread = thread_ident()

    def __dealloc__(self):
        global latest_queue
        cdef Piece* piece
        if latest_queue == <void*>self:
            latest_queue = NULL
        while self.spare != NULL:
            piece = self.spare
            self.spare = piece.next
            PyMem_Free(piece)


@cython.final
@cython.freelist(4)
@cython.no_gc_clear  # so that `queue` is there when it is freed uncalled
cdef class Drain:
    cdef DeliveryQueue queue
    cdef object loop

    def __call__(self):
        cdef DeliveryQueue queue = self.queue
        self.queue = None
        if queue is not None:
            drain(queue, self.loop)

    def __dealloc__(self):
        if self.queue is not None:
            forget(self.queue)

    def __repr__(self):
        return "<fastpipe drain>"


cdef DeliveryQueue queue_of(object loop):
    global latest_queue
    cdef DeliveryQueue queue
    if HAS_GIL and latest_queue != NULL and (<DeliveryQueue>latest_queue).loop == <void*>loop:
        return <DeliveryQueue>latest_queue
    queue = queues.get(loop)
    if queue is None:
        queue = queues.setdefault(loop, DeliveryQueue(loop))
    if HAS_GIL:
        latest_queue = <void*>queue
    return queue


cdef inline void append_due(DeliveryQueue queue, PipeEnd end) noexcept:
    end.queued = True
    Py_INCREF(end)
    end.next_due = NULL
    if queue.last_due == NULL:
        queue.first_due = <void*>end
    else:
        (<PipeEnd>queue.last_due).next_due = <void*>end
    queue.last_due = <void*>end


cdef inline void* pop_due(DeliveryQueue queue) noexcept:
    """The first of the queue, and the queue's reference with it."""
    cdef void* end = queue.first_due
    queue.first_due = (<PipeEnd>end).next_due
    if queue.first_due == NULL:
        queue.last_due = NULL
    (<PipeEnd>end).queued = False
    return end


cdef int enqueue(DeliveryQueue queue, PipeEnd end) except -1:
    append_due(queue, end)
    if not queue.scheduled and not queue.draining:
        schedule(queue, end.loop)
    return 0


cdef int schedule(DeliveryQueue queue, object loop) except -1:
    cdef Drain callback = Drain.__new__(Drain)
    callback.loop = loop
    queue.scheduled = True
    try:
        loop.call_soon(callback)
    except BaseException:
        forget(queue)
        raise
    callback.queue = queue
    return 0


cdef inline void defer(DeliveryQueue queue, PipeEnd end) noexcept:
    """Leave the end's next callback to the next turn. The list has its own reference, as the queue has."""
    end.deferred = True
    end.queued = True
    Py_INCREF(end)
    end.next_due = NULL
    if queue.last_deferred == NULL:
        queue.first_deferred = <void*>end
    else:
        (<PipeEnd>queue.last_deferred).next_due = <void*>end
    queue.last_deferred = <void*>end


cdef inline void release_deferred(DeliveryQueue queue) noexcept:
    """Put what was deferred behind the queue."""
    if queue.first_deferred != NULL:
        if queue.last_due == NULL:
            queue.first_due = queue.first_deferred
        else:
            (<PipeEnd>queue.last_due).next_due = queue.first_deferred
        queue.last_due = queue.last_deferred
        queue.first_deferred = NULL
        queue.last_deferred = NULL


cdef void forget(DeliveryQueue queue) noexcept:
    queue.scheduled = False
    release_deferred(queue)
    while queue.first_due != NULL:
        Py_XDECREF(<PyObject*>pop_due(queue))


cdef inline bint budget_spent(DeliveryQueue queue) noexcept:
    return queue.calls >= TURN_CALLS or queue.bytes >= TURN_BYTES


cdef int drain(DeliveryQueue queue, object loop) except -1:
    cdef void* end
    queue.scheduled = False
    if queue.draining:
        return 0
    queue.thread = thread_ident()
    queue.draining = True
    queue.eof_delivered = False
    queue.calls = 0
    queue.bytes = 0
    try:
        while queue.first_due != NULL and not budget_spent(queue):
            end = pop_due(queue)
            queue.calls += 1
            try:
                step(<PipeEnd>end)
            finally:
                if not (<PipeEnd>end).queued and not nothing_due(<PipeEnd>end) and next_event(<PipeEnd>end) != NONE:
                    append_due(queue, <PipeEnd>end)
                Py_XDECREF(<PyObject*>end)
    finally:
        queue.draining = False
        release_deferred(queue)
        if queue.first_due != NULL and not queue.scheduled:
            schedule(queue, loop)
    return 0
