# The types that `decision.py` has when it is compiled.


cpdef object decide(object head, object route, object process)
cdef tuple decided(object target, object head)
