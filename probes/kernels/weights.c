/* Reduce parameters, their gradients and what an optimizer keeps of them, reading memory once. */
#include "moments.h"

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

void rheo_squares(const float *x, int64_t n, double *out, double *peak) {
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
void rheo_adam(const float *g, const float *w, const float *m, const float *v, int64_t n, double t, const double *group,
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
double rheo_turned(const float *now, float *kept, int64_t n) {
    double product = dot(now, kept, n), size = sqrt(dot(now, now, n) * dot(kept, kept, n));
    memcpy(kept, now, (size_t)n * sizeof(float));
    return product / size;
}

double rheo_distance(const float *a, const float *b, int64_t n) { return distance(a, b, n); }
