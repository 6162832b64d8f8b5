# carpel's profile for containers. It grants what a container may do by its other limits, and takes away
# what concerns the whole machine: the kernel's switches in /proc and /sys, its memory, new mounts. It says
# so a second time: masks, read-only mounts, capabilities and seccomp are the first.
#
# It is loaded unless the kernel has a profile of this name already.
profile carpel-default flags=(attach_disconnected, mediate_deleted) {
  capability,
  file,
  network,
  umount,
  deny mount,

  # From the pod's supervisor, from the node's administrator, and among containers.
  signal (receive) peer=unconfined,
  signal (send, receive) peer=carpel-default,
  ptrace (read, readby, trace, tracedby) peer=carpel-default,

  # /proc: the files of processes may be written, and below /proc/sys what belongs to a namespace: net/,
  # fs/mqueue/, and of kernel/ the limits of System V IPC (shm*, msg*, sem*).
  deny /proc/* wkl,
  deny /proc/{acpi,asound,bus,driver,fs,irq,mtrr,scsi,sysvipc,tty}/** wkl,
  deny /proc/kcore rwkl,
  deny /proc/sys/{abi,crypto,debug,dev,sunrpc,user,vm,xen}/** wkl,
  deny /proc/sys/fs/[^m]** wkl,
  deny /proc/sys/fs/m[^q]** wkl,
  deny /proc/sys/kernel/[^ms]** wkl,
  deny /proc/sys/kernel/m[^s]** wkl,
  deny /proc/sys/kernel/s[^eh]** wkl,
  deny /proc/sys/kernel/se[^m]** wkl,
  deny /proc/sys/kernel/sh[^m]** wkl,

  # /sys: only cgroups, for containers that are given theirs to write to.
  deny /sys/[^f]** wkl,
  deny /sys/f[^s]** wkl,
  deny /sys/fs/[^c]** wkl,
  deny /sys/fs/c[^g]** wkl,
  deny /sys/kernel/{debug,security,tracing}/** rwkl,
}
