# The types that `pieces.py` has when it is compiled.


cpdef write_pieces(writer, list pieces)
