/* Reduce rows one by one where each has a number of its own: log Z of logits, sizes of queries and keys. */
#include "moments.h"

DISPATCH static float largest(const float *x, int64_t n) { /* NaN is passed over */
    float top[ROW_LANES], most = -INFINITY;
    int64_t i = 0;
    for (int l = 0; l < ROW_LANES; l++) top[l] = -INFINITY;
    for (; i + ROW_LANES <= n; i += ROW_LANES)
        for (int l = 0; l < ROW_LANES; l++) top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
    for (int l = 0; l < ROW_LANES; l++) most = top[l] > most ? top[l] : most;
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* e^d to 2e-7 for d in -87 to 0: a power of two and a polynomial for what is left of the exponent. */
static inline float exponential(float d) {
    float k = d * 1.44269504f, whole = (k + 12582912.0f) - 12582912.0f, f = d * 1.44269504f - whole, power;
    int32_t bits = ((int32_t)whole + 127) << 23;
    memcpy(&power, &bits, 4);
    float p = 1.54035304e-4f;
    p = p * f + 1.33335581e-3f;
    p = p * f + 9.61812911e-3f;
    p = p * f + 5.55041087e-2f;
    p = p * f + 2.40226507e-1f;
    p = p * f + 6.93147181e-1f;
    return power * (p * f + 1.0f);
}

DISPATCH static double exponentials(const float *x, int n, float top) { /* sum of e^(x - top); at most a block */
    float sum[ROW_LANES] = {0};
    double all = 0;
    int i = 0;
    for (; i + ROW_LANES <= n; i += ROW_LANES)
        for (int l = 0; l < ROW_LANES; l++) {
            float d = x[i + l] - top;
            sum[l] += exponential(d < -87.0f ? -87.0f : d);
        }
    for (int l = 0; l < ROW_LANES; l++) all += sum[l];
    for (; i < n; i++) all += exponential(x[i] - top < -87.0f ? -87.0f : x[i] - top);
    return all;
}

/* Of rows that lie `stride` elements apart: sum of log Z, of its square, and the largest element. */
void rheo_log_z(const float *x, int64_t rows, int64_t width, int64_t stride, double *out) {
    out[0] = out[1] = 0, out[2] = -INFINITY;
    for (int64_t row = 0; row < rows; row++, x += stride) {
        if (row + 1 < rows) rheo_fetch(x + stride, width);
        float top = largest(x, width);
        double sum = 0, log_z = top;
        for (int64_t i = 0; i < width; i += BLOCK)
            sum += exponentials(x + i, (int)(width - i < BLOCK ? width - i : BLOCK), isfinite(top) ? top : 0);
        if (isfinite(top) || sum != sum) log_z += log(sum); /* a NaN shows in the sum alone */
        out[0] += log_z, out[1] += log_z * log_z;
        if (sum != sum) out[2] = NAN;
        else if (top > out[2]) out[2] = top;
    }
}

DISPATCH static double energy(const float *x, int64_t n) {
    float sum[ROW_LANES] = {0};
    double all = 0;
    int64_t i = 0;
    for (; i + ROW_LANES <= n; i += ROW_LANES)
        for (int l = 0; l < ROW_LANES; l++) sum[l] += x[i + l] * x[i + l];
    for (int l = 0; l < ROW_LANES; l++) all += sum[l];
    for (; i < n; i++) all += (double)x[i] * x[i];
    return all;
}

double rheo_energy(const float *x, int64_t n) {
    double all = energy(x, n);
    if (all > 1e-24 && all < 1e30) return all;
    all = 0; /* a square of float32 over- or underflowed */
    for (int64_t i = 0; i < n; i++) all += (double)x[i] * x[i];
    return all;
}

/* The largest size of a row, head by head; shape and strides are those of (batch, heads, rows, width). */
static void largest_sizes(const Heads *of, double *out) {
    for (int64_t head = 0; head < of->shape[1]; head++) out[head] = 0;
    for (int64_t batch = 0; batch < of->shape[0]; batch++)
        for (int64_t row = 0; row < of->shape[2]; row++)
            for (int64_t head = 0; head < of->shape[1]; head++) {
                const float *x = of->data + batch * of->strides[0] + head * of->strides[1] + row * of->strides[2];
                if (row + 1 < of->shape[2]) rheo_fetch(x + of->strides[2], of->shape[3]);
                double size = rheo_energy(x, of->shape[3]);
                if (size > out[head] || size != size) out[head] = size;
            }
    for (int64_t head = 0; head < of->shape[1]; head++) out[head] = sqrt(out[head]);
}

/* The bound of Cauchy and Schwarz in the first column of rows, one a head; NaN in the others. Query heads share key heads. */
int rheo_bound(const Heads *query, const Heads *key, double scale, double *out, int64_t columns) {
    int64_t heads = query->shape[1], shared = heads / key->shape[1];
    double *sizes = malloc((size_t)(heads + key->shape[1]) * sizeof(double));
    if (!sizes) return 0;
    largest_sizes(query, sizes);
    largest_sizes(key, sizes + heads);
    for (int64_t head = 0; head < heads; head++, out += columns) {
        out[0] = sizes[head] * sizes[heads + head / shared] * fabs(scale);
        for (int64_t k = 1; k < columns; k++) out[k] = NAN;
    }
    free(sizes);
    return 1;
}
