# The types that `client_side.py` has when it is compiled.
from agent.proxy.heads cimport Response


cdef class ClientSide:
    # Names the connection in the log.
    cdef public object conn_id
    cdef public bytes request_id
    # The exchange reads these before it writes.
    cdef public bint writing_paused, is_delivering, may_have_left, response_begun, carries_grpc

    cpdef pause_request(self)
    cpdef resume_request(self)
    cpdef target_moved(self)
    cpdef send_continue(self)
    cpdef send_informational(self, Response response)
    cpdef start_response(self, Response response, long long length, list pieces, bint ended, list trailers)
    cpdef send_body(self, list pieces, bint ended, list trailers)
    cpdef response_done(self)
    cpdef abort_response(self, str reason, str limit)
    cpdef truncation(self)
    cpdef switch_protocols(self, Response response, rest, upgraded)
    cpdef write(self, data)
    cpdef bint write_eof(self) except -1
    cpdef tunnel_done(self)
