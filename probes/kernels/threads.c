/* Share a large tensor among threads: a pool of workers that sleep between calls.
 *
 * One call at a time has the pool; another caller meanwhile works alone. In the child of a fork the pool is empty and hires anew.
 */
#include "moments.h"

#ifdef HAS_THREADS
#include <pthread.h>
#endif

enum { WORTH_A_THREAD = 1 << 17, MOST_THREADS = 16 }; /* elements; fewer are reduced sooner than a worker wakes */

#ifdef HAS_THREADS
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

static void run_part(Part *part) { rheo_reduce_rows(part->job, part->first, part->last, &part->sums, part->channels); }

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

void rheo_forget_workers(void) { /* in the child of a fork the workers are gone */
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
        rheo_merge(to, &parts[k].sums);
        if (job->channels && k) {
            for (int64_t c = 0; c < job->width; c++) job->channels[c] += parts[k].channels[c];
            free(parts[k].channels);
        }
    }
    pthread_mutex_unlock(&turn);
    return 1;
}
#else
void rheo_forget_workers(void) {}
#endif

void rheo_reduce(const Job *job, Sums *to, int n_threads) {
    int64_t worth = job->rows * job->width / WORTH_A_THREAD;
    if (n_threads > worth) n_threads = (int)worth;
    if (n_threads > MOST_THREADS) n_threads = MOST_THREADS;
    if (n_threads > job->rows) n_threads = (int)job->rows;
#ifdef HAS_THREADS
    if (n_threads > 1 && reduce_together(job, to, n_threads)) return;
#endif
    rheo_reduce_rows(job, 0, job->rows, to, job->channels);
}
