/* How alike the tokens of a state are, and how far they turned since the state before, reading each state once.
 *
 * A row stays in the first-level cache between its three passes: its size, its unit vector's share in the sequence's sum, and
 * the distance of that unit vector from the one before.
 */
#include "moments.h"

static const double SMALLEST = 1e-37; /* of a token that has a direction: its inverse is a float32 */

/* In float32: of unit vectors it is as exact as the state itself. */
DISPATCH static void add_scaled(const float *restrict x, int64_t n, float scale, float *restrict sum) {
    for (int64_t i = 0; i < n; i++) sum[i] += x[i] * scale;
}

DISPATCH static double distance(const float *x, float a, const float *y, float b, int64_t n) { /* |a x - b y|^2 */
    float sum[ROW_LANES] = {0};
    double all = 0;
    int64_t i = 0;
    for (; i + ROW_LANES <= n; i += ROW_LANES)
        for (int l = 0; l < ROW_LANES; l++) {
            float d = x[i + l] * a - y[i + l] * b;
            sum[l] += d * d;
        }
    for (; i < n; i++) {
        float d = x[i] * a - y[i] * b;
        all += d * d;
    }
    for (int l = 0; l < ROW_LANES; l++) all += sum[l];
    return all;
}

/* One sequence; `sum` is room for one number a channel, all 0. */
static void sequence(const Tokens *job, int64_t nth, float *sum, double *out) {
    int64_t width = job->width, n = 0;
    for (int64_t token = 0; token < job->tokens; token++) {
        int64_t row = nth * job->tokens + token, at = nth * job->apart + token * job->following;
        double inverse = 0, before = job->before ? job->inverse_before[row] : 0;
        const float *x = job->state + at, *y = job->before + nth * job->apart_before + token * job->following_before;
        if (token + 1 < job->tokens) {
            rheo_fetch(x + job->following, width);
            if (job->before) rheo_fetch(y + job->following_before, width);
        }
        if (!job->mask || job->mask[row]) {
            double size = sqrt(rheo_energy(x, width));
            inverse = size < SMALLEST ? 0 : isfinite(size) ? 1 / size : NAN;
            if (inverse != 0) n++, add_scaled(x, width, (float)inverse, sum);
            if (inverse != 0 && before != 0) {
                double half = sqrt(distance(x, (float)inverse, y, (float)before, width)) / 2;
                out[2] += asin(half > 1 ? 1 : half) * (2 / 3.14159265358979323846), out[3]++;
            }
        }
        if (job->inverse) job->inverse[row] = inverse;
    }
    if (n < 2) return;
    double whole = 0;
    for (int64_t k = 0; k < width; k++) whole += (double)sum[k] * sum[k];
    out[0] += (whole - (double)n) / ((double)n * (double)(n - 1)), out[1]++;
}

int rheo_tokens(const Tokens *job, double *out) {
    float *sum = malloc((size_t)job->width * sizeof(float) + 1);
    if (!sum) return 0;
    out[0] = out[1] = 0;
    out[2] = out[3] = job->before ? 0 : NAN;
    for (int64_t k = 0; k < job->sequences; k++) {
        memset(sum, 0, (size_t)job->width * sizeof(float));
        sequence(job, k, sum, out);
    }
    free(sum);
    return 1;
}
