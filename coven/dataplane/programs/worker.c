/* SPDX-License-Identifier: Apache-2.0 */
/* coven-worker: the process that moves packets. Everything it needs comes over the control socket, descriptor 3
 * (docs/internals.md section 3). */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "control.h"
#include "worker.h"

static int usage(void)
{
    fputs("usage: coven-worker --instance NAME --index N   (control socket on descriptor 3)\n", stderr);
    return 2;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"instance", required_argument, NULL, 'i'},
        {"index", required_argument, NULL, 'n'},
        {NULL, 0, NULL, 0},
    };
    const char *instance = NULL;
    struct coven_worker *worker;
    char *end = NULL;
    char name[16];
    long index = -1;
    int option, status;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'i')
            instance = optarg;
        else if (option == 'n')
            index = strtol(optarg, &end, 10);
        else
            return usage();
    }
    if (!instance || index < 0 || !end || *end != '\0' || optind != argc)
        return usage();
    snprintf(name, sizeof(name), "coven-w%d", (int)(index % 10000));
    prctl(PR_SET_NAME, name);
    prctl(PR_SET_TIMERSLACK, 1000); /* ns: naps are of some microseconds, and by default end up to 50 later */
    signal(SIGPIPE, SIG_IGN);
    worker = coven_worker_new(COVEN_CONTROL_FD);
    if (!worker) {
        fputs("coven-worker: no memory\n", stderr);
        return 1;
    }
    status = coven_worker_run(worker);
    coven_worker_free(worker);
    return status;
}
