/*
 * Runs for a moment on each processor whenever something comes in at the port that it is given.
 *
 * QEMU's emulation of SVM clears a bit of a processor's pending interrupts without a lock (do_vmexit in
 * svm_helper.c, 7.2 and 10.0) while the thread in which timers expire may set another: that one is lost
 * now and then. The interrupt then stays pending in the local APIC, and its processor asleep, until
 * another interrupt has QEMU look there. If the lost one was the timer's, and nothing else comes, a
 * nested host with a single processor sleeps for ever. scripts/nested-kvm writes to the port, so that
 * something comes: the port's interrupt wakes one processor, and this program's moves the others.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int port = open(argc > 1 ? argv[1] : "", O_RDONLY | O_CLOEXEC);
    long count = sysconf(_SC_NPROCESSORS_CONF);
    char signs[64];

    if (port < 0) {
        perror("wake-processors");
        return 1;
    }
    while (read(port, signs, sizeof signs) > 0) {
        for (long processor = 0; processor < count; processor++) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(processor, &one);
            /* One that is offline is refused, and needs nothing. */
            (void)sched_setaffinity(0, sizeof one, &one);
        }
    }
    return 0;
}
