//! The pure brain: windows in, decisions out.
