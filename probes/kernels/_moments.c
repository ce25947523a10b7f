/* The door from Python to the kernel. Addresses and sizes are the caller's promise: it takes them from tensors. */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "moments.h"

#ifdef HAS_THREADS
#include <pthread.h>
#endif

static int numbers(PyObject *const *args, Py_ssize_t n_args, int64_t *to, Py_ssize_t wanted) {
    if (n_args < wanted) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, n_args);
        return 0;
    }
    for (Py_ssize_t k = 0; k < wanted && k < 8; k++) to[k] = (int64_t)PyLong_AsUnsignedLongLongMask(args[k]);
    return !PyErr_Occurred();
}

static PyObject *py_moments(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t a[8]; /* data, rows, width, kind, out, flags, n_threads, partner */
    double factor = 0;
    if (!numbers(args, n_args, a, n_args == 7 ? 7 : 10)) return NULL;
    if (n_args == 7) a[7] = 0;
    else factor = PyFloat_AsDouble(args[8]);
    int64_t rows = a[1], width = a[2];
    if (PyErr_Occurred()) return NULL;
    if (a[3] < 0 || a[3] >= N_KINDS || rows < 0 || width < 0 || (!a[0] && rows && width)) {
        PyErr_SetString(PyExc_ValueError, "expected an address, a known kind and sizes of 0 or more");
        return NULL;
    }
    Job job = {(const char *)(uintptr_t)a[0], rows, width, (int)a[3], (a[5] & WANTS_ROW_MEANS) != 0, NULL,
               (const char *)(uintptr_t)a[7], factor};
    Sums sums;
    memset(&sums, 0, sizeof sums);
    if ((a[5] & WANTS_CHANNELS) && width && !(job.channels = calloc((size_t)width, sizeof(double)))) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    if (rows && width) rheo_reduce(&job, &sums, (int)a[6]);
    for (int64_t c = 0; job.channels && rows && c < width; c++) {
        double mean = fabs(job.channels[c]) / (double)rows;
        if (mean > sums.sums[CHANNEL] || mean != mean) sums.sums[CHANNEL] = mean;
    }
    free(job.channels);
    Py_END_ALLOW_THREADS
    memcpy((void *)(uintptr_t)a[4], sums.sums, sizeof sums.sums);
    if (n_args != 7) memcpy((void *)(uintptr_t)PyLong_AsUnsignedLongLongMask(args[9]), sums.pair, sizeof sums.pair);
    Py_RETURN_NONE;
}

static PyObject *py_squares(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t a[4]; /* data, n, out, peak */
    if (!numbers(args, n_args, a, 4)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rheo_squares((const float *)(uintptr_t)a[0], a[1], (double *)(uintptr_t)a[2], (double *)(uintptr_t)a[3]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_distance(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t a[4]; /* left, right, n, out */
    if (!numbers(args, n_args, a, 4)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    *(double *)(uintptr_t)a[3] = rheo_distance((const float *)(uintptr_t)a[0], (const float *)(uintptr_t)a[1], a[2]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_adam(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t a[2]; /* table, number of its rows of 7: gradient, weight, first, second, count, n, out; then 5 factors */
    double group[5];
    if (!numbers(args, n_args, a, 2) || n_args < 7) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "expected 7 arguments");
        return NULL;
    }
    for (int k = 0; k < 5; k++) group[k] = PyFloat_AsDouble(args[2 + k]);
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    /* Backwards: the optimizer went through them in order, and the last ones are still in the caches. */
    for (int64_t k = a[1] - 1; k >= 0; k--) {
        const int64_t *row = (const int64_t *)(uintptr_t)a[0] + 7 * k;
        rheo_adam((const float *)(uintptr_t)row[0], (const float *)(uintptr_t)row[1], (const float *)(uintptr_t)row[2],
             (const float *)(uintptr_t)row[3], row[5], *(const float *)(uintptr_t)row[4], group, (double *)(uintptr_t)row[6]);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_turns(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t a[2]; /* table, number of its rows of 4: vector, its copy, n, out */
    if (!numbers(args, n_args, a, 2)) return NULL;
    for (int64_t k = 0; k < a[1]; k++) {
        const int64_t *row = (const int64_t *)(uintptr_t)a[0] + 4 * k;
        *(double *)(uintptr_t)row[3] = rheo_turned((const float *)(uintptr_t)row[0], (float *)(uintptr_t)row[1], row[2]);
    }
    Py_RETURN_NONE;
}

static PyObject *py_tokens(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t a[8], b[5]; /* state, sequences, tokens, width, apart, following, mask, inverse; before and its three, out */
    int is_done;
    if (!numbers(args, n_args, a, 8) || !numbers(args + 8, n_args - 8, b, 5)) return NULL;
    if (a[1] < 0 || a[2] < 0 || a[3] < 0) {
        PyErr_SetString(PyExc_ValueError, "expected sizes of 0 or more");
        return NULL;
    }
    Tokens job = {(const float *)(uintptr_t)a[0], a[1], a[2], a[3], a[4], a[5], (const uint8_t *)(uintptr_t)a[6],
                  (double *)(uintptr_t)a[7], (const float *)(uintptr_t)b[0], (const double *)(uintptr_t)b[1], b[2], b[3]};
    Py_BEGIN_ALLOW_THREADS
    is_done = rheo_tokens(&job, (double *)(uintptr_t)b[4]);
    Py_END_ALLOW_THREADS
    if (!is_done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_log_z(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t a[5]; /* data, rows, width, stride, out */
    if (!numbers(args, n_args, a, 5)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rheo_log_z((const float *)(uintptr_t)a[0], a[1], a[2], a[3], (double *)(uintptr_t)a[4]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_bound(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t q[8], k[8], to[2]; /* data, shape and three strides of either; scale; out and columns of its rows */
    if (!numbers(args, n_args, q, 8) || !numbers(args + 8, n_args - 8, k, 8) || !numbers(args + 17, n_args - 17, to, 2)) return NULL;
    double scale = PyFloat_AsDouble(args[16]);
    int is_done;
    if (PyErr_Occurred()) return NULL;
    if (k[2] < 1 || q[2] % k[2]) {
        PyErr_SetString(PyExc_ValueError, "expected key heads that divide the query heads");
        return NULL;
    }
    Heads query = {(const float *)(uintptr_t)q[0], q + 1, q + 5}, key = {(const float *)(uintptr_t)k[0], k + 1, k + 5};
    Py_BEGIN_ALLOW_THREADS
    is_done = rheo_bound(&query, &key, scale, (double *)(uintptr_t)to[0], to[1]);
    Py_END_ALLOW_THREADS
    if (!is_done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

#define FAST(name, function, text) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, text}
static PyMethodDef methods[] = {
    FAST("moments", py_moments,
         "moments(data, rows, width, kind, out, flags, n_threads[, partner, factor, pair])\n\n"
         "Write the 10 sums of the rows x width elements at address `data` to the doubles at address `out`. With a partner\n"
         "p of the same kind and shape, write to `pair` the energy of x - factor p and the product of factor p with it."),
    FAST("squares", py_squares, "squares(data, n, out, peak)\n\nWrite sum x^2 and, where peak is not 0, the largest |x| of n float32."),
    FAST("distance", py_distance, "distance(left, right, n, out)\n\nWrite the squared distance of two float32 vectors."),
    FAST("adam", py_adam,
         "adam(table, n_rows, lr, beta_1, beta_2, eps, decay)\n\n"
         "For every row of addresses (gradient, weight, first, second, count), n and out of int64s, write 7 sums of what an\n"
         "Adam step did, from its state after it."),
    FAST("turns", py_turns,
         "turns(table, n_rows)\n\n"
         "For every row of int64s (address of a vector, of its kept copy, n, out) write their cosine and renew the copy."),
    FAST("tokens", py_tokens,
         "tokens(state, sequences, tokens, width, apart, following, mask, inverse,\n"
         "       before, inverse_before, apart_before, following_before, out)\n\n"
         "Write each float32 token's inverse size to the doubles at `inverse`, and four sums to `out`: of the sequences' mean\n"
         "cosines, their number, of the angles to the state before over pi, their number. mask and before may be 0."),
    FAST("log_z", py_log_z,
         "log_z(data, rows, width, stride, out)\n\n"
         "Write the sum over float32 rows of log Z = log sum e^x, the sum of its square, and the largest x."),
    FAST("bound", py_bound,
         "bound(query, *shape, *strides, key, *shape, *strides, scale, out, columns)\n\n"
         "Write a row of doubles for each query head: |scale| times the largest size of a query times that of a key, then NaN.\n"
         "Shapes are of (batch, heads, rows, width), float32; strides are of the first three."),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_moments", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__moments(void) {
#ifdef HAS_THREADS
    pthread_atfork(NULL, NULL, rheo_forget_workers);
#endif
    return PyModule_Create(&module);
}
