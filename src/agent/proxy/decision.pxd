# The types that `decision.py` has when it is compiled.

# Neither function has a C field: what has to be awaited is rare, and its class stays in Python.

cpdef object decide(object head, object route, object process)
cdef tuple decided(object target, object head)
