# The constants that `lean_connection.py` has as C numbers when it is compiled. Its class stays a Python class.
cdef int CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PUSH_PROMISE, RST_STREAM, BEYOND_FRAME
cdef Py_ssize_t MIN_MAX_FRAME_SIZE
