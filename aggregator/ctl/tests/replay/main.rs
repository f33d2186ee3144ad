//! `sagectl replay` and `eval` as programs, on small recordings that the tests make: good ones and damaged ones.
#![allow(clippy::disallowed_methods, reason = "these tests are about files and processes")]

mod answers;
mod damage;
mod fixture;
mod without;
