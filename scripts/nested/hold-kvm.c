/*
 * Keeps one idle VM with one virtual processor open for as long as the nested host runs.
 *
 * Linux patches its own scheduler and KVM code when the first VM appears and when the last one goes.
 * QEMU before 8.1 can translate such code on one thread while another thread patches it, and then
 * runs the stale breakpoint: the nested host panics with "int3" now and then. With a VM that is
 * always there, the code is patched once, before the second processor is started.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);

    if (vm < 0 || ioctl(vm, KVM_CREATE_IRQCHIP, 0) < 0 || ioctl(vm, KVM_CREATE_VCPU, 0) < 0) {
        perror("hold-kvm");
        return 1;
    }
    /* From here on the starter need not wait: the code is patched. */
    if (daemon(0, 0) < 0) {
        perror("hold-kvm");
        return 1;
    }
    for (;;)
        pause();
}
