/* Reduce a tensor to its moments, reading memory once.
 *
 * The tensor is walked in blocks that stay in the first-level cache. One pass over a block takes its largest |x| (as bits,
 * so that NaN and infinity show), its zeros and the sums of d = x * scale - centre up to the fourth power in float32 lanes.
 * `scale` is the power of two that brings the largest |x| to about 1, so that nothing overflows or underflows, whatever the
 * size of the values; it and the centre are those of the block before, and a block that they do not fit is passed again with
 * its own. The sums of channels and rows, and the products with a second tensor, are taken while the block is in the cache.
 * Blocks are joined in float64 as raw power sums, which add up over threads, micro-batches and ranks.
 */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(_WIN32)
#include <pthread.h>
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

enum { F32, BF16, F16, F64, N_KINDS };
/* The order of a row of sums; ROW_MEANS is the energy of the rows' means, CHANNEL the largest |mean| of a channel. */
enum { COUNT, FIRST, SECOND, THIRD, FOURTH, ABSMAX, ZEROS, NONFINITE, ROW_MEANS, CHANNEL, N_SUMS };
enum { WANTS_CHANNELS = 1, WANTS_ROW_MEANS = 2 };
enum { BLOCK = 4096, LANES = 32, WORTH_A_THREAD = 1 << 17, MOST_THREADS = 16, FLUSH_ROWS = 64 };

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

static const int64_t SIZES[N_KINDS] = {4, 2, 2, 8};

/* ---- 16-bit floats ---------------------------------------------------------------------------------------------- */

DISPATCH static void widen_bf16(const uint16_t *in, float *out, int n) {
    uint32_t *bits = (uint32_t *)out;
    for (int i = 0; i < n; i++) bits[i] = (uint32_t)in[i] << 16;
}

DISPATCH static void widen_f16(const uint16_t *in, float *out, int n) {
    uint32_t *bits = (uint32_t *)out;
    for (int i = 0; i < n; i++) {
        uint32_t body = (uint32_t)(in[i] & 0x7fff) << 13, sign = (uint32_t)(in[i] & 0x8000) << 16;
        float value;
        memcpy(&value, &body, 4);
        value *= 5.192296858534828e33f; /* 2^112: the difference of the exponents' biases; subnormals come out right */
        uint32_t wide;
        memcpy(&wide, &value, 4);
        wide |= body >= 0x0f800000u ? 0x7f800000u : 0; /* infinity and NaN keep their exponent of ones */
        bits[i] = wide | sign;
    }
}

/* ---- one block of float32 --------------------------------------------------------------------------------------- */

/* About which centre, and in which power of two, a block's central sums are taken. Any would do that lies near the values,
 * so the block before tells; `reach` is its exponent. */
typedef struct {
    float scale, centre;
    int exponent, is_known;
} Frame;

enum { FAR = 8 }; /* powers of two between a frame's size and a block's, above which the block gets its own frame */

typedef struct {
    uint32_t largest;
    int64_t zeros;
    double central[4];
} Look;

/* All of a block in one pass: largest |x| as bits, zeros, and the sums of d, d^2, d^3 and d^4 of d = x * scale - centre. */
DISPATCH static void look(const float *x, int n, float scale, float centre, Look *out) {
    uint32_t top[LANES] = {0}, none[LANES] = {0};
    float s1[LANES] = {0}, s2[LANES] = {0}, s3[LANES] = {0}, s4[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        PREFETCH(x + i + BLOCK); /* the next block comes while this one is in work */
        PREFETCH(x + i + BLOCK + LANES / 2);
        for (int l = 0; l < LANES; l++) {
            float v = x[i + l], d = v * scale - centre, e = d * d;
            uint32_t bits;
            memcpy(&bits, &v, 4);
            bits &= 0x7fffffffu;
            top[l] = bits > top[l] ? bits : top[l];
            none[l] += bits == 0;
            s1[l] += d;
            s2[l] += e;
            s3[l] += e * d;
            s4[l] += e * e;
        }
    }
    double t1 = 0, t2 = 0, t3 = 0, t4 = 0;
    uint32_t peak = 0;
    int64_t zeros = 0;
    for (int l = 0; l < LANES; l++) {
        peak = top[l] > peak ? top[l] : peak;
        zeros += none[l];
        t1 += s1[l], t2 += s2[l], t3 += s3[l], t4 += s4[l];
    }
    for (; i < n; i++) {
        float d = x[i] * scale - centre, e = d * d;
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        peak = bits > peak ? bits : peak;
        zeros += bits == 0;
        t1 += d, t2 += e, t3 += e * d, t4 += e * e;
    }
    out->largest = peak, out->zeros = zeros;
    out->central[0] = t1, out->central[1] = t2, out->central[2] = t3, out->central[3] = t4;
}

DISPATCH static double float_sum(const float *x, int64_t n) {
    float total[LANES] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) total[l] += x[i + l];
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) total[l] += total[l + half];
    for (; i < n; i++) rest += x[i];
    return (double)total[0] + rest;
}

/* Add sums about `centre`, of n values times 2^-exponent, to raw power sums. */
static void join(Sums *to, double n, const double *d, const Frame *frame) {
    double c = frame->centre, c2 = c * c, p = ldexp(1.0, frame->exponent), p2 = p * p;
    to->sums[FIRST] += p * (d[0] + n * c);
    to->sums[SECOND] += p2 * (d[1] + 2 * c * d[0] + n * c2);
    to->sums[THIRD] += p2 * p * (d[2] + 3 * c * d[1] + 3 * c2 * d[0] + n * c2 * c);
    to->sums[FOURTH] += p2 * p2 * (d[3] + 4 * c * d[2] + 6 * c2 * d[1] + 4 * c2 * c * d[0] + n * c2 * c2);
}

/* Any values at all, one by one in float64: for blocks that hold what is not finite, or subnormal, or float64 input. */
static void slowly(const void *x, int n, int is_double, Sums *to) {
    for (int i = 0; i < n; i++) {
        double v = is_double ? ((const double *)x)[i] : (double)((const float *)x)[i], w = v * v;
        to->sums[FIRST] += v;
        to->sums[SECOND] += w;
        to->sums[THIRD] += w * v;
        to->sums[FOURTH] += w * w;
        to->sums[ZEROS] += v == 0;
        to->sums[NONFINITE] += !isfinite(v);
        double a = fabs(v);
        if (a > to->sums[ABSMAX] || a != a) to->sums[ABSMAX] = a;
    }
    to->sums[COUNT] += n;
}

static void set_frame(Frame *frame, int exponent, double mean) {
    double scale = ldexp(1.0, -exponent);
    frame->exponent = exponent, frame->scale = (float)scale, frame->centre = (float)(mean * scale), frame->is_known = 1;
}

static void guess(const float *x, int n, Frame *frame) {
    Look seen;
    float largest;
    int exponent;
    look(x, n, 1, 0, &seen);
    memcpy(&largest, &seen.largest, 4);
    if (!(largest >= 1e-36f && largest <= 1e36f)) return;
    frexp(largest, &exponent);
    set_frame(frame, exponent, float_sum(x, n) / n);
}

static void block(const float *x, int n, Sums *to, Frame *frame) {
    Look seen;
    if (!frame->is_known) guess(x, n < 256 ? n : 256, frame);
    look(x, n, frame->scale, frame->centre, &seen);
    if (seen.largest == 0) { /* all zeros */
        to->sums[COUNT] += n;
        to->sums[ZEROS] += n;
        return;
    }
    float largest;
    memcpy(&largest, &seen.largest, 4);
    if (seen.largest >= 0x7f800000u || largest > 1e36f || largest < 1e-36f) {
        slowly(x, n, 0, to);
        return;
    }
    int exponent;
    frexp(largest, &exponent);
    if (!frame->is_known || abs(exponent - frame->exponent) > FAR) {
        set_frame(frame, exponent, float_sum(x, n) / n);
        look(x, n, frame->scale, frame->centre, &seen);
    }
    join(to, n, seen.central, frame);
    to->sums[COUNT] += n;
    to->sums[ZEROS] += (double)seen.zeros;
    if (largest > to->sums[ABSMAX]) to->sums[ABSMAX] = largest;
    double off = seen.central[0];
    if (exponent != frame->exponent || off * off > 0.0625 * n * seen.central[1]) /* the next block's: this one's values */
        set_frame(frame, exponent, ldexp(frame->centre + seen.central[0] / n, frame->exponent));
}

/* Sum over rows, channel by channel; four rows at a time, so that the sums pass through memory a quarter as often. */
DISPATCH static void add_channels(const float *x, int rows, int64_t width, float *partial) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
        const float *a = x + r * width, *b = a + width, *c = b + width, *d = c + width;
        for (int64_t k = 0; k < width; k++) partial[k] += (a[k] + b[k]) + (c[k] + d[k]);
    }
    for (; r < rows; r++)
        for (int64_t k = 0; k < width; k++) partial[k] += x[r * width + k];
}

/* ---- the tensor ------------------------------------------------------------------------------------------------- */

static const float *widened(const char *at, int kind, int n, float *buffer) {
    if (kind == F32) return (const float *)at;
    if (kind == BF16) widen_bf16((const uint16_t *)at, buffer, n);
    else widen_f16((const uint16_t *)at, buffer, n);
    return buffer;
}

static void flush(float *partial, double *channels, int64_t width) {
    for (int64_t c = 0; c < width; c++) {
        channels[c] += partial[c];
        partial[c] = 0;
    }
}

DISPATCH static void pair_part(const float *x, const float *p, int n, float scale, float factor, double *out) {
    float energy[LANES] = {0}, product[LANES] = {0};
    float re = 0, rp = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        PREFETCH(p + i + BLOCK);
        PREFETCH(p + i + BLOCK + LANES / 2);
        for (int l = 0; l < LANES; l++) {
            float skip = p[i + l] * factor, rest = (x[i + l] - skip) * scale;
            energy[l] += rest * rest, product[l] += skip * scale * rest;
        }
    }
    for (; i < n; i++) {
        float skip = p[i] * factor, rest = (x[i] - skip) * scale;
        re += rest * rest, rp += skip * scale * rest;
    }
    double te = re, tp = rp;
    for (int l = 0; l < LANES; l++) te += energy[l], tp += product[l];
    out[0] = te, out[1] = tp;
}

static void pair_block(const float *x, const float *p, int n, const Frame *frame, double factor, Sums *to) {
    double found[2], back = ldexp(1.0, 2 * frame->exponent);
    pair_part(x, p, n, frame->scale, (float)factor, found);
    to->pair[0] += back * found[0], to->pair[1] += back * found[1];
}

/* A part of a row, or whole rows, of float64. `total` is the sum of a row that began in an earlier part. */
static void double_block(const Job *job, const char *at, const char *other, int n, int64_t offset, double *total, Sums *to,
                         double *channels) {
    const double *x = (const double *)at, *p = (const double *)other;
    slowly(at, n, 1, to);
    for (int i = 0; i < n; i++) {
        if (channels) channels[(offset + i) % job->width] += x[i];
        if (p) {
            double skip = p[i] * job->factor, rest = x[i] - skip;
            to->pair[0] += rest * rest, to->pair[1] += skip * rest;
        }
        *total += x[i];
        if ((offset + i + 1) % job->width == 0) {
            if (job->wants_row_means) to->sums[ROW_MEANS] += *total * *total / (double)job->width;
            *total = 0;
        }
    }
}

/* Rows first..last of the job: into `to`, and the channels' sums into `channels` (may be NULL). */
static void reduce_rows(const Job *job, int64_t first, int64_t last, Sums *to, double *channels) {
    float buffer[BLOCK], other[BLOCK];
    int64_t width = job->width, size = SIZES[job->kind];
    Frame frame = {1, 0, 0, 0};
    float *partial = channels && job->kind != F64 ? calloc((size_t)width, sizeof(float)) : NULL;
    int64_t since = 0;
    int64_t step = width <= BLOCK ? BLOCK / width : 1; /* whole rows in a block */
    for (int64_t row = first; row < last; row += step) {
        int64_t rows = last - row < step ? last - row : step;
        const char *at = job->data + row * width * size;
        const char *beside = job->partner ? job->partner + row * width * size : NULL;
        double total = 0; /* of one row that spans several blocks */
        for (int64_t offset = 0; offset < rows * width;) {
            int n = (int)(rows * width - offset < BLOCK ? rows * width - offset : BLOCK);
            if (job->kind == F64) {
                double_block(job, at, beside, n, offset, &total, to, channels);
            } else {
                const float *x = widened(at, job->kind, n, buffer);
                block(x, n, to, &frame);
                if (beside) pair_block(x, widened(beside, job->kind, n, other), n, &frame, job->factor, to);
                if (partial) add_channels(x, n < width ? 1 : (int)rows, n < width ? n : width, partial + offset % width);
                for (int64_t done = 0; job->wants_row_means && done < n;) {
                    int64_t part = n < width ? n : width;
                    total += float_sum(x + done, part), done += part;
                    if ((offset + done) % width == 0) to->sums[ROW_MEANS] += total * total / (double)width, total = 0;
                }
            }
            at += n * size, offset += n;
            if (beside) beside += n * size;
        }
        if (partial && (since += rows) >= FLUSH_ROWS) flush(partial, channels, width), since = 0;
    }
    if (partial) flush(partial, channels, width), free(partial);
}

static void merge(Sums *to, const Sums *from) {
    double a = to->sums[ABSMAX], b = from->sums[ABSMAX];
    for (int k = 0; k < N_SUMS; k++) to->sums[k] += from->sums[k];
    for (int k = 0; k < 2; k++) to->pair[k] += from->pair[k];
    to->sums[ABSMAX] = a != a || a > b ? a : b;
}

#ifdef HAS_THREADS
/* A pool of workers that sleep between calls. One call at a time has it; another caller meanwhile works alone. */
typedef struct {
    const Job *job;
    int64_t first, last;
    Sums sums;
    double *channels;
} Part;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static Part parts[MOST_THREADS];
static int n_workers, n_parts, next_part, n_open;
static uint64_t round_;

static void run_part(Part *part) { reduce_rows(part->job, part->first, part->last, &part->sums, part->channels); }

static void *work(void *unused) {
    (void)unused;
    uint64_t seen = 0;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (round_ == seen || next_part >= n_parts) {
            seen = round_;
            pthread_cond_wait(&begun, &lock);
        }
        Part *part = &parts[next_part++];
        pthread_mutex_unlock(&lock);
        run_part(part);
        pthread_mutex_lock(&lock);
        if (--n_open == 0) pthread_cond_signal(&ended);
    }
    return NULL;
}

static void forget_workers(void) { /* in the child of a fork the workers are gone */
    n_workers = n_parts = next_part = n_open = 0;
    pthread_mutex_init(&turn, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&begun, NULL);
    pthread_cond_init(&ended, NULL);
}

static int hire(int wanted) {
    while (n_workers < wanted) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &attributes, work, NULL);
        pthread_attr_destroy(&attributes);
        if (failed) break;
        n_workers++;
    }
    return n_workers;
}

static int reduce_together(const Job *job, Sums *to, int n_threads) {
    if (pthread_mutex_trylock(&turn)) return 0;
    pthread_mutex_lock(&lock);
    int n = 1 + hire(n_threads - 1);
    if (n > n_threads) n = n_threads;
    for (int k = 0; k < n; k++) {
        memset(&parts[k], 0, sizeof(Part));
        parts[k].job = job;
        parts[k].first = job->rows * k / n;
        parts[k].last = job->rows * (k + 1) / n;
        parts[k].channels = k && job->channels ? calloc((size_t)job->width, sizeof(double)) : job->channels;
    }
    n_parts = n, next_part = 1, n_open = n - 1, round_++;
    pthread_cond_broadcast(&begun);
    pthread_mutex_unlock(&lock);
    run_part(&parts[0]);
    pthread_mutex_lock(&lock);
    while (next_part < n_parts) { /* nobody has come for it yet */
        Part *part = &parts[next_part++];
        pthread_mutex_unlock(&lock);
        run_part(part);
        pthread_mutex_lock(&lock);
        n_open--;
    }
    while (n_open) pthread_cond_wait(&ended, &lock);
    n_parts = 0;
    pthread_mutex_unlock(&lock);
    for (int k = 0; k < n; k++) {
        merge(to, &parts[k].sums);
        if (job->channels && k) {
            for (int64_t c = 0; c < job->width; c++) job->channels[c] += parts[k].channels[c];
            free(parts[k].channels);
        }
    }
    pthread_mutex_unlock(&turn);
    return 1;
}
#endif

static void reduce(const Job *job, Sums *to, int n_threads) {
    int64_t worth = job->rows * job->width / WORTH_A_THREAD;
    if (n_threads > worth) n_threads = (int)worth;
    if (n_threads > MOST_THREADS) n_threads = MOST_THREADS;
    if (n_threads > job->rows) n_threads = (int)job->rows;
#ifdef HAS_THREADS
    if (n_threads > 1 && reduce_together(job, to, n_threads)) return;
#endif
    reduce_rows(job, 0, job->rows, to, job->channels);
}

/* ---- parameters: read once, in float64 lanes, since their gradients may be of any size ---------------------------- */

enum { WIDE = 32, AHEAD = 1024 };

static double folded(const double *lanes) {
    double all = 0;
    for (int l = 0; l < WIDE; l++) all += lanes[l];
    return all;
}

DISPATCH static double dot(const float *a, const float *b, int64_t n) {
    double sum[WIDE] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        for (int l = 0; l < WIDE; l++) sum[l] += (double)a[i + l] * b[i + l];
    for (; i < n; i++) rest += (double)a[i] * b[i];
    return folded(sum) + rest;
}

DISPATCH static uint32_t largest_bits(const float *x, int n) { /* of |x|; NaN stands above infinity above all numbers */
    uint32_t top[LANES] = {0}, most = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            uint32_t bits;
            memcpy(&bits, x + i + l, 4);
            bits &= 0x7fffffffu;
            top[l] = bits > top[l] ? bits : top[l];
        }
    for (int l = 0; l < LANES; l++) most = top[l] > most ? top[l] : most;
    for (; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

static void squares(const float *x, int64_t n, double *out, double *peak) {
    uint32_t most = 0;
    double sum = 0;
    for (int64_t i = 0; i < n; i += BLOCK) {
        int part = (int)(n - i < BLOCK ? n - i : BLOCK);
        uint32_t bits = largest_bits(x + i, part);
        most = bits > most ? bits : most;
        sum += dot(x + i, x + i, part);
    }
    float largest;
    memcpy(&largest, &most, 4);
    *out = sum;
    if (peak) *peak = largest;
}

DISPATCH static double distance(const float *a, const float *b, int64_t n) {
    double sum[WIDE] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE)
        for (int l = 0; l < WIDE; l++) {
            double d = (double)a[i + l] - b[i + l];
            sum[l] += d * d;
        }
    for (; i < n; i++) {
        double d = (double)a[i] - b[i];
        rest += d * d;
    }
    return folded(sum) + rest;
}

/* What an Adam step did, from its state after it. With w the weight after the step, m and v the moments, root = sqrt(v) *
 * spread: step = rate * mean * m / (root + eps), update = step + decay * (w before), and w before follows from w after.
 * out: sum g^2, max |g|, sum w^2, sum update^2, sum (g / root)^2, sum root^2, number of roots below eps. */
typedef struct {
    float rate, spread, eps, decay, shrink;
} Adam;

/* 1 / sqrt(v) and 1 / z to 5e-6, by Newton's steps from a guess of the exponent: the processor's own root and division take
 * four times as long as reading memory. */
static inline float inverse_root(float v) {
    uint32_t bits;
    float y, half = 0.5f * v;
    memcpy(&bits, &v, 4);
    bits = 0x5f375a86u - (bits >> 1);
    memcpy(&y, &bits, 4);
    y *= 1.5f - half * y * y;
    return y * (1.5f - half * y * y);
}

static inline float inverse_of(float z) {
    uint32_t bits;
    float y;
    memcpy(&bits, &z, 4);
    bits = 0x7ef311c7u - bits;
    memcpy(&y, &bits, 4);
    y *= 2 - z * y;
    y *= 2 - z * y;
    return y * (2 - z * y);
}

DISPATCH static void adam_part(const float *g, const float *w, const float *m, const float *v, int n, const Adam *f, double *out) {
    float rate = f->rate, spread = f->spread, eps = f->eps, decay = f->decay, shrink = f->shrink;
    float sg[WIDE] = {0}, sw[WIDE] = {0}, su[WIDE] = {0}, sr[WIDE] = {0}, sv[WIDE] = {0};
    uint32_t top[WIDE] = {0}, below[WIDE] = {0}, most = 0;
    for (int i = 0; i < n; i += WIDE) {
        for (int line = 0; line < WIDE; line += WIDE / 2) {
            PREFETCH(g + i + line + AHEAD), PREFETCH(w + i + line + AHEAD);
            PREFETCH(m + i + line + AHEAD), PREFETCH(v + i + line + AHEAD);
        }
        for (int l = 0; l < WIDE; l++) {
            float gi = g[i + l], wi = w[i + l], vi = v[i + l], root = vi * inverse_root(vi) * spread;
            float inverse = inverse_of(root + eps), step = rate * m[i + l] * inverse, update = step + decay * (wi + step) * shrink;
            float ratio = gi * inverse;
            uint32_t bits;
            memcpy(&bits, &gi, 4);
            bits &= 0x7fffffffu;
            top[l] = bits > top[l] ? bits : top[l];
            below[l] += root < eps;
            sg[l] += gi * gi, sw[l] += wi * wi;
            su[l] += update * update, sr[l] += ratio * ratio, sv[l] += root * root;
        }
    }
    float largest;
    for (int l = 0; l < WIDE; l++) most = top[l] > most ? top[l] : most;
    memcpy(&largest, &most, 4);
    double found[7] = {0};
    for (int l = 0; l < WIDE; l++) {
        found[0] += sg[l], found[2] += sw[l], found[3] += su[l], found[4] += sr[l], found[5] += sv[l];
        found[6] += below[l];
    }
    /* A square of float32 that over- or underflowed: gradients may be of any size. */
    if (!(found[0] > 1e-24 && found[0] < 1e30)) found[0] = dot(g, g, n);
    if (!(found[2] > 1e-24 && found[2] < 1e30)) found[2] = dot(w, w, n);
    out[1] = largest > out[1] || largest != largest ? largest : out[1];
    for (int k = 0; k < 7; k++) out[k] += k == 1 ? 0 : found[k];
}

/* One parameter of n elements: the group's factors are lr, beta 1, beta 2, eps, decay. */
static void adam(const float *g, const float *w, const float *m, const float *v, int64_t n, double t, const double *group,
                 double *out) {
    double lr = group[0], decay = lr * group[4];
    Adam f = {(float)(lr / (1 - pow(group[1], t))), (float)(1 / sqrt(1 - pow(group[2], t))), (float)group[3], (float)decay,
              (float)(1 / (1 - decay))};
    float tail[4][WIDE] = {{0}};
    int64_t whole = n / WIDE * WIDE;
    memset(out, 0, 7 * sizeof(double));
    for (int64_t i = 0; i < whole; i += BLOCK) {
        int part = (int)(whole - i < BLOCK ? whole - i : BLOCK);
        adam_part(g + i, w + i, m + i, v + i, part, &f, out);
    }
    if (whole < n) {
        size_t bytes = (size_t)(n - whole) * sizeof(float);
        memcpy(tail[0], g + whole, bytes), memcpy(tail[1], w + whole, bytes);
        memcpy(tail[2], m + whole, bytes), memcpy(tail[3], v + whole, bytes);
        adam_part(tail[0], tail[1], tail[2], tail[3], WIDE, &f, out);
        out[6] -= f.eps > 0 ? (double)(whole + WIDE - n) : 0; /* the padding's roots are 0 */
    }
}

/* The cosine of a vector with a copy of it that is kept; the copy is renewed. */
static double turned(const float *now, float *kept, int64_t n) {
    double product = dot(now, kept, n), size = sqrt(dot(now, now, n) * dot(kept, kept, n));
    memcpy(kept, now, (size_t)n * sizeof(float));
    return product / size;
}

/* ---- Python ----------------------------------------------------------------------------------------------------- */

/* Addresses and sizes are the caller's promise: this module is private to its package, which takes them from tensors. */
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
    if (rows && width) reduce(&job, &sums, (int)a[6]);
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
    squares((const float *)(uintptr_t)a[0], a[1], (double *)(uintptr_t)a[2], (double *)(uintptr_t)a[3]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_distance(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    (void)self;
    int64_t a[4]; /* left, right, n, out */
    if (!numbers(args, n_args, a, 4)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    *(double *)(uintptr_t)a[3] = distance((const float *)(uintptr_t)a[0], (const float *)(uintptr_t)a[1], a[2]);
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
        adam((const float *)(uintptr_t)row[0], (const float *)(uintptr_t)row[1], (const float *)(uintptr_t)row[2],
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
        *(double *)(uintptr_t)row[3] = turned((const float *)(uintptr_t)row[0], (float *)(uintptr_t)row[1], row[2]);
    }
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
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_moments", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__moments(void) {
#ifdef HAS_THREADS
    pthread_atfork(NULL, NULL, forget_workers);
#endif
    return PyModule_Create(&module);
}
