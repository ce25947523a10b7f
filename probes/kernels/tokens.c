/* How alike the tokens of a state are, and how far they turned since the state before, reading each state once.
 *
 * A row stays in the first-level cache between its three passes: its size, its unit vector's share in the sequence's sum, and
 * the distance of that unit vector from the one before.
 */
#include "moments.h"

DISPATCH static double energy(const float *x, int64_t n) {
    double sum[LANES] = {0}, all = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) sum[l] += (double)x[i + l] * x[i + l];
    for (; i < n; i++) all += (double)x[i] * x[i];
    for (int l = 0; l < LANES; l++) all += sum[l];
    return all;
}

DISPATCH static void add_scaled(const float *x, int64_t n, double scale, double *sum) {
    for (int64_t i = 0; i < n; i++) sum[i] += x[i] * scale;
}

DISPATCH static double distance(const float *x, double a, const float *y, double b, int64_t n) { /* |a x - b y|^2 */
    double sum[LANES] = {0}, all = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            double d = x[i + l] * a - y[i + l] * b;
            sum[l] += d * d;
        }
    for (; i < n; i++) {
        double d = x[i] * a - y[i] * b;
        all += d * d;
    }
    for (int l = 0; l < LANES; l++) all += sum[l];
    return all;
}

/* One sequence; `sum` is room for one double a channel, all 0. */
static void sequence(const Tokens *job, int64_t nth, double *sum, double *out) {
    int64_t width = job->width, n = 0;
    for (int64_t token = 0; token < job->tokens; token++) {
        int64_t row = nth * job->tokens + token, at = nth * job->apart + token * job->following;
        double inverse = 0, before = job->before ? job->inverse_before[row] : 0;
        if (!job->mask || job->mask[row]) {
            const float *x = job->state + at;
            double size = sqrt(energy(x, width));
            inverse = size == 0 ? 0 : isfinite(size) ? 1 / size : NAN;
            if (inverse != 0) n++, add_scaled(x, width, inverse, sum);
            if (inverse != 0 && before != 0) {
                const float *y = job->before + nth * job->apart_before + token * job->following_before;
                double half = sqrt(distance(x, inverse, y, before, width)) / 2;
                out[2] += asin(half > 1 ? 1 : half) * (2 / 3.14159265358979323846), out[3]++;
            }
        }
        job->inverse[row] = inverse;
    }
    if (n < 2) return;
    double whole = 0;
    for (int64_t k = 0; k < width; k++) whole += sum[k] * sum[k];
    out[0] += (whole - (double)n) / ((double)n * (double)(n - 1)), out[1]++;
}

int rheo_tokens(const Tokens *job, double *out) {
    double *sum = malloc((size_t)job->width * sizeof(double) + 1);
    if (!sum) return 0;
    out[0] = out[1] = 0;
    out[2] = out[3] = job->before ? 0 : NAN;
    for (int64_t k = 0; k < job->sequences; k++) {
        memset(sum, 0, (size_t)job->width * sizeof(double));
        sequence(job, k, sum, out);
    }
    free(sum);
    return 1;
}
