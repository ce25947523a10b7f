/* What the parts of the kernel share: how it is compiled, and what is passed between them. */
#ifndef RHEOSCOPE_MOMENTS_H
#define RHEOSCOPE_MOMENTS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(_WIN32)
#define HAS_THREADS 1
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__linux__)
#define DISPATCH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define DISPATCH __attribute__((target_clones("avx512f", "avx2", "default")))
#elif defined(__x86_64__) && defined(__clang__) && __clang_major__ >= 15 && defined(__linux__)
#define DISPATCH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DISPATCH
#endif

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)
#else
#define PREFETCH(address) (void)(address)
#endif

static inline void rheo_fetch(const float *row, int64_t n) { /* rows may lie far apart: no processor guesses the next one */
    for (int64_t i = 0; i < n; i += 16) PREFETCH(row + i);
}

enum { F32, BF16, F16, F64, N_KINDS };
/* The order of a row of sums; ROW_MEANS is the energy of the rows' means, CHANNEL the largest |mean| of a channel. */
enum { COUNT, FIRST, SECOND, THIRD, FOURTH, ABSMAX, ZEROS, NONFINITE, ROW_MEANS, CHANNEL, N_SUMS };
enum { WANTS_CHANNELS = 1, WANTS_ROW_MEANS = 2 };
enum { BLOCK = 4096, LANES = 32, ROW_LANES = 16, FLUSH_ROWS = 64 }; /* a row is short: few lanes are folded sooner */

typedef struct {
    double sums[N_SUMS];
    double pair[2]; /* with a partner p and its factor a: energy of x - a p, and the product of a p with it */
} Sums;

typedef struct {
    const char *data;
    int64_t rows, width;
    int kind, wants_row_means;
    double *channels;    /* one double a channel, or NULL */
    const char *partner; /* a tensor of the same kind and shape, dense, or NULL */
    double factor;
} Job;

/* reduce.c: rows first..last of the job, into `to`, and the channels' sums into `channels` (may be NULL). */
void rheo_reduce_rows(const Job *job, int64_t first, int64_t last, Sums *to, double *channels);
void rheo_merge(Sums *to, const Sums *from);

/* threads.c: the whole job. */
void rheo_reduce(const Job *job, Sums *to, int n_threads);
void rheo_forget_workers(void);

/* weights.c: parameters and optimizer states. */
void rheo_squares(const float *x, int64_t n, double *out, double *peak);
double rheo_distance(const float *a, const float *b, int64_t n);
void rheo_adam(const float *g, const float *w, const float *m, const float *v, int64_t n, double t, const double *group,
               double *out);
double rheo_turned(const float *now, float *kept, int64_t n);

/* rows.c: rows that each have a number of their own. */
double rheo_energy(const float *x, int64_t n); /* sum of squares */
void rheo_log_z(const float *x, int64_t rows, int64_t width, int64_t stride, double *out);
typedef struct {
    const float *data;
    const int64_t *shape, *strides; /* of batch, heads, rows and width; the last is dense, and has no stride */
} Heads;
int rheo_bound(const Heads *query, const Heads *key, double scale, double *out, int64_t columns); /* 0 without memory */

/* tokens.c: the four sums of a state's tokens to `out`; 0 without memory. Inverse sizes are 0 for a token that does not count. */
typedef struct {
    const float *state;
    int64_t sequences, tokens, width;
    int64_t apart, following; /* elements from one sequence, and from one token, to the next */
    const uint8_t *mask; /* one byte a token, or NULL: all count */
    double *inverse;     /* to: one a token, or NULL */
    const float *before; /* the same tokens at the state before and their inverse sizes, or NULL */
    const double *inverse_before;
    int64_t apart_before, following_before;
} Tokens;
int rheo_tokens(const Tokens *job, double *out);

#endif
