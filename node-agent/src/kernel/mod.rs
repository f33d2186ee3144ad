//! Everything that touches the kernel: readers of usage and writers of knobs. Nothing else names `/sys` or netlink.

pub mod sample;
