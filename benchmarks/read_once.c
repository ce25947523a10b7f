/* Read memory once: what no instrument that looks at every element can undercut. */
double total(const float *x, long n) {
    float lanes[64] = {0}, rest = 0;
    long i = 0;
    for (; i + 64 <= n; i += 64) {
        for (int line = 0; line < 64; line += 16) __builtin_prefetch(x + i + line + 2048, 0, 2);
        for (int l = 0; l < 64; l++) lanes[l] += x[i + l];
    }
    for (; i < n; i++) rest += x[i];
    double sum = rest;
    for (int l = 0; l < 64; l++) sum += lanes[l];
    return sum;
}
