//! One virtual machine in a process, resizable in place.
