//! Usage: raw counters to rates to percentiles of a window. Pure.
