/* What `_pipe_c.pyx` asks of CPython's C API that Cython has no word for, or a slower one. */

#ifndef FASTPIPE_CPYTHON_H
#define FASTPIPE_CPYTHON_H

#include <Python.h>

#ifndef FASTPIPE_DEBUG
#define FASTPIPE_DEBUG 0
#endif
#ifdef Py_GIL_DISABLED
#define FASTPIPE_HAS_GIL 0
#else
#define FASTPIPE_HAS_GIL 1
#endif

/* Who calls? The thread's own address where the compiler has it in one instruction: it is asked in every write. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11 && (defined(__x86_64__) || defined(__aarch64__))
#define fastpipe_thread() ((size_t)__builtin_thread_pointer())
#else
#define fastpipe_thread() ((size_t)PyThread_get_thread_ident())
#endif

/* callable(argument), the short way where it is the bound method of a Python function, as most are. */
static CYTHON_INLINE PyObject *fastpipe_invoke(PyObject *callable, PyObject *argument) {
    if (PyMethod_Check(callable) && PyFunction_Check(PyMethod_GET_FUNCTION(callable))) {
        PyObject *function = PyMethod_GET_FUNCTION(callable);
        PyObject *args[3] = {NULL, PyMethod_GET_SELF(callable), argument};
        return ((PyFunctionObject *)function)->vectorcall(
            function, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    } else {
        PyObject *args[2] = {NULL, argument};
        return PyObject_Vectorcall(callable, args + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
}

/* The same in the context; -1 with an exception set. */
static CYTHON_INLINE int fastpipe_call_in(PyObject *context, PyObject *callable, PyObject *argument) {
    PyObject *result;
    if (PyContext_Enter(context) < 0) return -1;
    result = fastpipe_invoke(callable, argument);
    if (PyContext_Exit(context) < 0) Py_CLEAR(result);
    if (result == NULL) return -1;
    Py_DECREF(result);
    return 0;
}

/* The same outside of any context's change. */
static CYTHON_INLINE int fastpipe_call(PyObject *callable, PyObject *argument) {
    PyObject *result = fastpipe_invoke(callable, argument);
    if (result == NULL) return -1;
    Py_DECREF(result);
    return 0;
}

/* self.name(argument), or self.name() for NULL, in the context unless that is NULL. */
static PyObject *fastpipe_method(PyObject *context, PyObject *self, PyObject *name, PyObject *argument) {
    PyObject *args[3] = {NULL, self, argument};
    PyObject *result;
    if (context != NULL && PyContext_Enter(context) < 0) return NULL;
    result = PyObject_VectorcallMethod(
        name, args + 1, (argument ? 2 : 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (context != NULL && PyContext_Exit(context) < 0) Py_CLEAR(result);
    return result;
}

static CYTHON_INLINE int fastpipe_raise(void) { return -1; }

/* Have `__dict__` made by the first that sets something: Cython makes one, of 80 bytes, for each instance. */
static CYTHON_INLINE void fastpipe_forget_dict(PyObject *self) {
    PyObject **dict = (PyObject **)((char *)self + Py_TYPE(self)->tp_dictoffset);
    Py_CLEAR(*dict);
}

/* Before CPython 3.12 a method call is not specialized for objects whose `__dict__` isn't there: a tenth of a round
   trip. So an end that bytes arrive at has one there; without memory for it, it goes on without. */
static CYTHON_INLINE void fastpipe_have_dict(PyObject *self) {
#if PY_VERSION_HEX < 0x030C0000
    PyObject **dict = (PyObject **)((char *)self + Py_TYPE(self)->tp_dictoffset);
    if (*dict == NULL && (*dict = PyDict_New()) == NULL) PyErr_Clear();
#endif
}

static CYTHON_INLINE PyObject *fastpipe_view_base(PyObject *view) {
    PyObject *base = PyMemoryView_GET_BASE(view);
    if (base == NULL) base = Py_None;
    Py_INCREF(base);
    return base;
}

#endif
