//! Readers of usage: cgroups, procfs and netlink, once a second.
