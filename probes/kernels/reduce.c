/* Reduce a tensor to its moments, reading memory once.
 *
 * The tensor is walked in blocks that stay in the first-level cache. One pass over a block takes its largest |x| (as bits,
 * so that NaN and infinity show), its zeros and the sums of d = x * scale - centre up to the fourth power in float32 lanes.
 * `scale` is the power of two that brings the largest |x| to about 1, so that nothing overflows or underflows, whatever the
 * size of the values; it and the centre are those of the block before, and a block that they do not fit is passed again with
 * its own. The sums of channels and rows, and the products with a second tensor, are taken while the block is in the cache.
 * Blocks are joined in float64 as raw power sums, which add up over threads, micro-batches and ranks.
 */
#include "moments.h"

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
void rheo_reduce_rows(const Job *job, int64_t first, int64_t last, Sums *to, double *channels) {
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

void rheo_merge(Sums *to, const Sums *from) {
    double a = to->sums[ABSMAX], b = from->sums[ABSMAX];
    for (int k = 0; k < N_SUMS; k++) to->sums[k] += from->sums[k];
    for (int k = 0; k < 2; k++) to->pair[k] += from->pair[k];
    to->sums[ABSMAX] = a != a || a > b ? a : b;
}
